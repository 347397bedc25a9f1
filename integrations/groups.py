"""DRA on the rewards of a batch, group by group: what the adapters in this folder share.

All of DRA comes from reward.py, with the options of its `DraConfig`; here rows only find their group. Not supported are
`dra.weights` and `dra.advantages`, which need our trainer's rows.

With `apply = "advantage"` what comes out are advantages. They take the place of the rewards: their sum in a group is 0,
so a trainer that subtracts the mean leaves them as they are, if it is told not to divide by the standard deviation.
`scale` says whether ours are divided ("std", GRPO) or not ("none", Dr. GRPO).
"""
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence

import torch
from torch import Tensor

from embedder import Embedder
from reward import OPTIONS, DraConfig, cosine_similarity, dra_advantages, upcast


class GroupRewards:
    """Texts and total rewards of N completions in, adjusted rewards out."""

    def __init__(self, dra: DraConfig, device: str | torch.device = "cpu", group_size: int | None = None,
                 scale: str = "std"):
        """Loads the embedder onto `device`. Raises ValueError for options that exclude each other or are unavailable,
        and for a `group_size`, given where the trainer knows it, that leaves nothing to compare.
        """
        for key in ("weights", "advantages"):
            if getattr(dra, key):
                raise ValueError(f"dra.{key} = {getattr(dra, key)!r} works in dra_grpo.py only; leave it empty")
        if dra.text == "answer":
            raise ValueError('dra.text = "answer" works in dra_grpo.py only, which knows the answers; use "completion"')
        if group_size is not None and group_size < 2:
            raise ValueError(f"DRA compares the completions of a prompt; sample at least 2 of each, not {group_size}")
        self.options, self.scale = {key: getattr(dra, key) for key in OPTIONS}, scale
        self.of_group(torch.ones(2), torch.eye(2))      # refuses options now, not after the first rollout
        self.embedder = Embedder(dra.embedder, dra.max_tokens, dra.trust_remote_code, device,
                                 dra.text) if dra.enabled else None

    def __call__(self, texts: Sequence[str], rewards_N: Tensor, groups: Sequence[Hashable]) -> Tensor:
        """(N,) in the order given, at least float32; rows with equal `groups`, wherever they stand, are of one prompt.

        A group of one has no diversity and is left alone. Where right answers matter, right means reward > 0. Raises
        ValueError for a reward that is not finite, which would silently make its whole group's advantages so.
        """
        adjusted_N = upcast(rewards_N).clone()
        if not adjusted_N.isfinite().all():
            row = int(adjusted_N.isfinite().logical_not().nonzero()[0])
            raise ValueError(f"the reward of completion {row} of {len(adjusted_N)}, group {groups[row]!r}, is "
                             f"{adjusted_N[row].item()}; a reward function must return a finite number. "
                             f"The completion: {texts[row][:200]!r}")
        if self.embedder is None:
            return adjusted_N
        embeddings_ND = self.embedder.encode(list(texts)).to(adjusted_N.device)
        rows_of = defaultdict(list)
        for row, group in zip(range(len(adjusted_N)), groups, strict=True):
            rows_of[group].append(row)
        for rows in rows_of.values():
            if len(rows) > 1:
                adjusted_N[rows] = self.of_group(adjusted_N[rows], cosine_similarity(embeddings_ND[rows]))
        return adjusted_N

    def of_group(self, rewards_G: Tensor, similarity_GG: Tensor) -> Tensor:
        *_, adjusted_G, advantages_G = dra_advantages(rewards_G, similarity_GG, rewards_G > 0, self.scale,
                                                      **self.options)
        return advantages_G if self.options["apply"] == "advantage" else adjusted_G


def require_unscaled(dra: DraConfig, setting: str, holds: Callable[[], bool]) -> None:
    """ValueError for `apply = "advantage"` in a trainer that divides advantages again; `setting` turns that off."""
    if dra.enabled and dra.apply == "advantage" and not holds():
        raise ValueError(f"apply = advantage hands advantages over, which must not be divided again; set {setting}")


def texts_of(tokenizer, tokens: Iterable[Tensor], masks: Iterable[Tensor]) -> list[str]:
    """What the policy wrote: of each row's tokens, (L,), those where its mask, (L,), is 1, so no tool output."""
    return [tokenizer.decode(row[mask.bool()], skip_special_tokens=True)
            for row, mask in zip(tokens, masks, strict=True)]


def at_last_token(values_N: Tensor, masks: Iterable[Tensor]) -> list[Tensor]:
    """Each row's value as rewards per token, (L,): at the last token where its mask, (L,), is 1, and 0 elsewhere."""
    rows = []
    for value, mask in zip(values_N, masks, strict=True):
        rows.append(values_N.new_zeros(len(mask)))
        rows[-1][(mask * torch.arange(1, len(mask) + 1, device=mask.device)).argmax()] = value
    return rows
