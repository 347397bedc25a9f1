"""DRA in verl 0.9 (V1 trainer, the default): the trainer, with the rewards adjusted before they become advantages.

In a module on PYTHONPATH that the environment variable VERL_USE_EXTERNAL_MODULES names, which verl imports in every process:

    from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY
    from integrations.verl_v1 import with_dra
    from reward import DraConfig
    TRAINER_REGISTRY["sync"] = with_dra(TRAINER_REGISTRY["sync"], DraConfig())

The entry is replaced, as verl compares the name with "sync" in many places; "colocate_async", "separate_async" work alike.
Read from verl 0.9.1, trainer/ppo/v1/{trainer_base,utils,agent_loop_tq}.py: `_compute_advantage` gets whole prompts as keys
"{uid}_{session}_{output}" in any order, and padding. All outputs of a session have one reward; the last is the completion that
DRA reads. Logs and dumps show the reward before DRA; validation does not pass here.
"""
import torch
import transfer_queue as tq
from tensordict import TensorDict

from integrations.groups import GroupRewards, at_last_token, texts_of
from reward import DraConfig


def with_dra(trainer: type, dra: DraConfig, device: str | torch.device = "cpu") -> type:
    """A subclass of trainer class `trainer` that adjusts `rm_scores` while advantages are computed."""

    class DraTrainer(trainer):
        def __init__(self, config, *arguments, **options):
            super().__init__(config, *arguments, **options)
            self.adjust = GroupRewards(dra, device, config.actor_rollout_ref.rollout.n)

        def _compute_advantage(self, batch, metrics: dict):
            where = {"keys": batch.keys, "partition_id": batch.partition_id}
            data = tq.kv_batch_get(**where, select_fields=["uid", "responses", "response_mask", "rm_scores"])
            uids, masks, scores = list(data["uid"]), data["response_mask"].unbind(), list(data["rm_scores"].unbind())
            rows = [row for row, tag in enumerate(batch.tags) if not tag.get("is_padding", False)]
            session, output = zip(*(key.rsplit("_", 1) for key in batch.keys))
            last = {session[row]: row for row in sorted(rows, key=lambda row: int(output[row]))}
            picked = list(last.values())
            texts = texts_of(self.tokenizer, [data["responses"][row] for row in picked], [masks[row] for row in picked])
            totals = torch.stack([scores[row].sum() for row in picked])
            adjusted = dict(zip(last, self.adjust(texts, totals, [uids[row] for row in picked])))
            values = torch.stack([adjusted[session[row]] for row in rows])
            for row, new in zip(rows, at_last_token(values, [masks[row] for row in rows]), strict=True):
                scores[row] = new.to(scores[row])
            self.put_scores(where, torch.nested.as_nested_tensor(scores, layout=torch.jagged))
            batch = super()._compute_advantage(batch, metrics)
            self.put_scores(where, data["rm_scores"])
            return batch

        @staticmethod
        def put_scores(where: dict, scores: torch.Tensor) -> None:
            tq.kv_batch_put(**where, fields=TensorDict({"rm_scores": scores}, batch_size=len(where["keys"])))

    return DraTrainer
