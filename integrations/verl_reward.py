"""DRA in verl: any of its reward managers, with the scores adjusted.

In the file that `custom_reward_function.path` names, next to your `compute_score`:

    from verl.workers.reward_manager import get_reward_manager_cls, register
    register("dra")(with_dra(get_reward_manager_cls("naive"), DraConfig(embedder=...)))

and `reward_model.reward_manager=dra` on the command line. Read from verl 0.6.1
(workers/reward_manager/{abstract,naive,batch}.py, trainer/ppo/{reward,ray_trainer}.py): a manager is built by
(tokenizer, num_examine, compute_score, reward_fn_key, **reward_kwargs) and called with the whole batch, whose rows
`balance_batch` has put in any order; the G completions of a prompt share their "uid". The same in verl 0.7.0 with
`reward_model.use_reward_loop=False` and `reward_manager.name=dra`. From 0.7.1 on verl has only its reward loop, which
scores one completion at a time and sees no group: there is no place for DRA in it.
"""
import functools
from typing import Any

import torch

from integrations.groups import GroupRewards
from reward import DraConfig


@functools.cache                                        # verl may run a file twice; a name is registered once
def with_dra(manager: type, dra: DraConfig, device: str | torch.device = "cpu") -> type:
    """A subclass of reward manager class `manager` that adjusts what it scores, except in validation."""

    class DraRewardManager(manager):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            self.adjust = GroupRewards(dra, device)

        def __call__(self, data, return_dict: bool = False) -> torch.Tensor | dict[str, Any]:
            """The adjusted total of each row at its last valid token, (B, L).

            `data` is the DataProto of whole groups.
            """
            result = super().__call__(data, return_dict=True)
            if not data.meta_info.get("validate", False):
                responses_BL = data.batch["responses"]
                lengths_B = data.batch["attention_mask"][:, -responses_BL.shape[1] :].sum(-1).tolist()
                texts = [self.tokenizer.decode(row[:length], skip_special_tokens=True)
                         for row, length in zip(responses_BL, lengths_B)]
                total_B = result["reward_tensor"].sum(-1)
                adjusted_B = self.adjust(texts, total_B, data.non_tensor_batch["uid"].tolist())
                last_B = torch.tensor([max(length, 1) - 1 for length in lengths_B], device=total_B.device)
                adjusted_BL = torch.zeros_like(result["reward_tensor"]).scatter_(
                    1, last_B[:, None], adjusted_B[:, None].to(total_B))
                # a new dict: with rm_scores given, the manager's own is the batch's tensor
                result = {**result, "reward_tensor": adjusted_BL}
            return result if return_dict else result["reward_tensor"]

    return DraRewardManager
