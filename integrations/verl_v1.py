"""DRA in verl 0.9 (V1 trainer, `trainer.use_v1=True`, the default): its trainer, with the rewards adjusted before they become advantages.

In a module on PYTHONPATH, named by the environment variable VERL_USE_EXTERNAL_MODULES, which verl imports in every process:

    from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY
    from integrations.verl_v1 import with_dra
    from reward import DraConfig
    TRAINER_REGISTRY["sync"] = with_dra(TRAINER_REGISTRY["sync"], DraConfig())

The entry is replaced, as verl compares the name with "sync" in many places; "colocate_async" and "separate_async" work alike.
Read from verl 0.9.1, trainer/ppo/v1/{trainer_base,utils,agent_loop_tq}.py: `_compute_advantage` gets the keys
"{uid}_{session}_{output}" of whole prompts in any order, and rows tagged is_padding. All outputs of a session have one reward;
the last of them is the completion that DRA reads. Validation does not pass here.
"""
import torch
import transfer_queue as tq
from tensordict import TensorDict

from integrations.groups import GroupRewards, at_last_token, texts_of
from reward import DraConfig


def with_dra(trainer: type, dra: DraConfig, device: str | torch.device = "cpu") -> type:
    """A subclass of trainer class `trainer` that adjusts `rm_scores` while advantages are computed; logs and dumps show them as they were."""

    class DraTrainer(trainer):
        def __init__(self, config, *arguments, **options):
            super().__init__(config, *arguments, **options)
            self.adjust = GroupRewards(dra, device, config.actor_rollout_ref.rollout.n)

        def _compute_advantage(self, batch, metrics: dict):
            where = {"keys": batch.keys, "partition_id": batch.partition_id}
            data = tq.kv_batch_get(**where, select_fields=["uid", "responses", "response_mask", "rm_scores"])
            uids, masks, scores = list(data["uid"]), data["response_mask"].unbind(), list(data["rm_scores"].unbind())
            sessions = [key.rsplit("_", 1) for key in batch.keys]
            rows = [row for row, tag in enumerate(batch.tags) if not tag.get("is_padding", False)]
            last = {sessions[row][0]: row for row in sorted(rows, key=lambda row: int(sessions[row][1]))}
            texts = texts_of(self.tokenizer, [data["responses"][row] for row in last.values()], [masks[row] for row in last.values()])
            adjusted = self.adjust(texts, torch.stack([scores[row].sum() for row in last.values()]), [uids[row] for row in last.values()])
            of_session = dict(zip(last, adjusted))
            values = torch.stack([of_session[sessions[row][0]] for row in rows])
            for row, new in zip(rows, at_last_token(values, [masks[row] for row in rows])):
                scores[row] = new.to(scores[row])
            self.put_scores(where, torch.nested.as_nested_tensor(scores, layout=torch.jagged))
            batch = super()._compute_advantage(batch, metrics)
            self.put_scores(where, data["rm_scores"])
            return batch

        @staticmethod
        def put_scores(where: dict, scores: torch.Tensor) -> None:
            tq.kv_batch_put(**where, fields=TensorDict({"rm_scores": scores}, batch_size=len(where["keys"])))

    return DraTrainer
