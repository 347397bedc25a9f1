"""DRA in verl 0.9 (V1 trainer, the default): the trainer, with the rewards adjusted before they become advantages.

In a module on PYTHONPATH that the environment variable VERL_USE_EXTERNAL_MODULES names (verl imports it everywhere):

    from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY
    from integrations.verl_v1 import with_dra
    from reward import DraConfig
    TRAINER_REGISTRY["sync"] = with_dra(TRAINER_REGISTRY["sync"], DraConfig())

The entry is replaced, as verl compares the name with "sync" in many places; for another trainer_mode replace its entry.
Read from verl 0.9.1, trainer/ppo/v1/trainer_base.py: `_compute_advantage` gets whole prompts, in any order, as keys
"{uid}_{session}_{output}", and padding. Outputs of a session share a reward; DRA reads the last. Logs stay before DRA.
`apply = "advantage"` needs `algorithm.norm_adv_by_std_in_grpo=False`; `scale` takes its place.
"""
import torch
import transfer_queue as tq
from tensordict import TensorDict

from integrations.groups import GroupRewards, at_last_token, require_unscaled, texts_of
from reward import DraConfig


def with_dra(trainer: type, dra: DraConfig, device: str | torch.device = "cpu", scale: str = "std") -> type:
    """A subclass of trainer class `trainer` that adjusts `rm_scores` while advantages are computed."""

    class DraTrainer(trainer):
        def __init__(self, config):
            super().__init__(config)
            require_unscaled(dra, "algorithm.norm_adv_by_std_in_grpo=False",
                             lambda: not config.algorithm.norm_adv_by_std_in_grpo)
            self.adjust = GroupRewards(dra, device, config.actor_rollout_ref.rollout.n, scale)

        def _compute_advantage(self, batch, metrics: dict):
            where = {"keys": batch.keys, "partition_id": batch.partition_id}
            fields = ["uid", "responses", "response_mask", "rm_scores"]
            data = tq.kv_batch_get(**where, select_fields=fields)
            uids, tokens, masks, scores = (list(data[field]) for field in fields)
            rows = [row for row, tag in enumerate(batch.tags) if not tag.get("is_padding", False)]
            session, output = zip(*(key.rsplit("_", 1) for key in batch.keys))
            last = {session[row]: row for row in sorted(rows, key=lambda row: int(output[row]))}
            texts = texts_of(self.tokenizer, *zip(*[(tokens[row], masks[row]) for row in last.values()]))
            totals = torch.stack([scores[row].sum() for row in last.values()])
            adjusted = dict(zip(last, self.adjust(texts, totals, [uids[row] for row in last.values()])))
            values = torch.stack([adjusted[session[row]] for row in rows]).to(totals)
            for row, score in zip(rows, at_last_token(values, [masks[row] for row in rows])):
                scores[row] = score
            new = {"rm_scores": torch.nested.as_nested_tensor(scores, layout=torch.jagged)}
            tq.kv_batch_put(**where, fields=TensorDict(new, batch_size=len(scores)))
            batch = super()._compute_advantage(batch, metrics)
            tq.kv_batch_put(**where, fields=data.select("rm_scores"))
            return batch

    return DraTrainer
