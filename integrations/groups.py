"""DRA on the rewards of a batch, group by group: what the three adapters in this folder share.

All of DRA comes from reward.py, with the options of its `DraConfig`; here rows only find their group. Not supported is
`dra.weights`, which needs our trainer's rows.
"""
from collections import defaultdict
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from embedder import Embedder
from reward import DraConfig, adjust_rewards, at_least_float32, cosine_similarity


class GroupRewards:
    """Texts and total rewards of N completions in, adjusted rewards out."""

    def __init__(self, dra: DraConfig, device: str | torch.device = "cpu"):
        """Loads the embedder onto `device`.

        Raises ValueError for options that exclude each other or do not work here.
        """
        if dra.weights:
            raise ValueError(f"dra.weights = {dra.weights!r} works in dra_grpo.py only; leave it empty")
        self.options = {key: getattr(dra, key) for key in ("smi", "sharpen", "clamp", "scope", "normalize", "negative")}
        adjust_rewards(torch.ones(2), torch.eye(2), **self.options)     # refuses them now, not after the first rollout
        self.embedder = Embedder(dra.embedder, dra.max_tokens, dra.trust_remote_code, device) if dra.enabled else None

    def __call__(self, texts: Sequence[str], rewards_N: Tensor, groups: Sequence[Hashable]) -> Tensor:
        """(N,) in the order given, at least float32; rows with equal `groups`, wherever they are, share a prompt.

        A NaN reward means that nothing could score the completion: it stays NaN and is nobody's neighbour. A group of
        one has no diversity and is left alone. Under `scope = correct` right means reward > 0.
        """
        adjusted_N = at_least_float32(rewards_N).clone()
        if self.embedder is None:
            return adjusted_N
        embeddings_ND = self.embedder.encode(list(texts)).to(adjusted_N.device)
        rows_of = defaultdict(list)
        for row, (group, unscored) in enumerate(zip(groups, adjusted_N.isnan().tolist(), strict=True)):
            if not unscored:
                rows_of[group].append(row)
        for rows in rows_of.values():
            if len(rows) > 1:
                adjusted_N[rows] = adjust_rewards(adjusted_N[rows], cosine_similarity(embeddings_ND[rows]),
                                                  **self.options)
        return adjusted_N
