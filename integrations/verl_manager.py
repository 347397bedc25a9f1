"""DRA in verl up to 0.7.0: any of its reward managers, with the scores adjusted.

In the file that `custom_reward_function.path` names, with `reward_model.reward_manager=dra` on the command line
(verl 0.7.0: `reward_model.use_reward_loop=False reward_manager.name=dra`):

    from verl.workers.reward_manager import get_reward_manager_cls, register
    from integrations.verl_manager import with_dra
    from reward import DraConfig
    register("dra")(with_dra(get_reward_manager_cls("naive"), DraConfig()))

Read from verl 0.6.1 and 0.7.0, workers/reward_manager/{abstract,naive,batch}.py: a manager is built by
(tokenizer, num_examine, compute_score, reward_fn_key, **reward_kwargs) and called with the whole batch.
`apply = "advantage"` needs `algorithm.norm_adv_by_std_in_grpo=False`, which is not seen here; `scale` takes its place.
"""
import functools
from typing import Any

import torch

from integrations.groups import GroupRewards
from integrations.verl_reward import adjusted_scores
from reward import DraConfig


@functools.cache                        # verl may run that file twice and refuses another class of the same name
def with_dra(manager: type, dra: DraConfig, device: str | torch.device = "cpu", scale: str = "std") -> type:
    """A subclass of reward manager class `manager` that adjusts its scores, but not those of validation."""

    class DraRewardManager(manager):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            self.adjust = GroupRewards(dra, device, scale=scale)

        def __call__(self, data, return_dict: bool = False) -> torch.Tensor | dict[str, Any]:
            """As the manager's; `data` is the DataProto of whole groups."""
            result = super().__call__(data, return_dict=True)
            if not data.meta_info.get("validate", False):
                scores_BL = adjusted_scores(self.adjust, self.tokenizer, data, result["reward_tensor"])
                result = {**result, "reward_tensor": scores_BL}     # a new dict: with rm_scores given, the batch's stay
            return result if return_dict else result["reward_tensor"]

    return DraRewardManager
