"""DRA in verl 0.7.1 and 0.8, and 0.9 with `trainer.use_v1=False`: its `extract_reward`, with the scores adjusted.

In a module on PYTHONPATH that the environment variable VERL_USE_EXTERNAL_MODULES names; verl imports it in every
process, before a trainer takes the function's name:

    from verl.trainer.ppo import reward as verl_reward
    from integrations.verl_reward import with_dra
    from reward import DraConfig
    verl_reward.extract_reward = with_dra(verl_reward.extract_reward, DraConfig(), tokenizer="Qwen/Qwen3-0.6B")

Read from verl 0.7.1 and 0.8.0, trainer/ppo/{reward,ray_trainer}.py: `fit` calls it with the whole batch, whose rows
`balance_batch` has put in any order; the completions of a prompt share their "uid". verl logs the score after DRA.
`apply = "advantage"` needs `algorithm.norm_adv_by_std_in_grpo=False`, which is not seen here; `scale` takes its place.
"""
import functools
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import AutoTokenizer

from integrations.groups import GroupRewards, at_last_token, texts_of
from reward import DraConfig


def adjusted_scores(adjust: GroupRewards, tokenizer, data, scores_BL: Tensor) -> Tensor:
    """(B, L), a new tensor: each row's adjusted total at its last token; `data` is the DataProto of whole groups."""
    masks_BL = data.batch["response_mask"]
    texts = texts_of(tokenizer, data.batch["responses"], masks_BL)
    adjusted_B = adjust(texts, scores_BL.sum(-1), data.non_tensor_batch["uid"].tolist())
    return torch.stack(at_last_token(adjusted_B, masks_BL)).to(scores_BL)


def with_dra(extract_reward: Callable, dra: DraConfig, tokenizer: str, device: str | torch.device = "cpu",
             scale: str = "std") -> Callable:
    """`extract_reward` with DRA, but not in validation, whose scores are reported as they are.

    `tokenizer` is the policy's folder or hub name.
    """

    @functools.cache                                    # once, and only in the process that trains
    def loaded():
        return GroupRewards(dra, device, scale=scale), AutoTokenizer.from_pretrained(tokenizer)

    def extract_adjusted_reward(batch) -> tuple[Tensor, dict]:
        scores_BL, extra = extract_reward(batch)
        adjust_and_tokenizer = loaded()                 # in validation too: it comes first, and what fails fails there
        if batch.meta_info.get("validate", False):
            return scores_BL, extra
        return adjusted_scores(*adjust_and_tokenizer, batch, scores_BL), extra

    return extract_adjusted_reward
