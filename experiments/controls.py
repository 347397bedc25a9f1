"""Controls that need more than the cosines of a group: the official code's pairs, and a graded reward.

    python dra_grpo.py --config configs/chain.toml dra.advantages=experiments/controls.py:wrong_pairs
    python dra_grpo.py --config configs/chain.toml 'reward.functions={"experiments/controls.py:partial_credit"=1}'
"""
import re
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from embedder import Embedder
from experiments.rules import is_chain
from reward import Grade, apply_weights, cosine_similarity, graph_cut_smi, group_advantages, weights_of_smi

# P prompts, G completions of each, N = P * G, n of them on a process, D embedding size

ADDITION = re.compile(r"(\d+)(?:\+| and )(\d+)(?:=| make )(\d+)")                   # as tiny_chain/task.py writes steps


def process_smi(embeddings_ND: Tensor, group_size: int) -> Tensor:
    """(N,): SMI as the official code of DRA computes it, with all completions on the same process and no others.

    Its recipe has groups of 6 and 4 completions on each of 3 processes, which hold prompts 0000, 0011 and 1111: groups
    are split, and some are mixed. So 2 groups are 3 processes here. Where 2 G / 3 is not whole (5, 6, 5 of 8 + 8) SMI
    is in proportion to it, as the weights would else know the size of their process.
    """
    others = 2 * group_size / 3 - 1
    processes = -(-3 * len(embeddings_ND) // (2 * group_size))
    ends = [round(2 * group_size * i / 3) for i in range(1, processes)]
    return torch.cat([graph_cut_smi(cosine_similarity(part_nD).clamp(min=0)) * others / max(len(part_nD) - 1, 1)
                      for part_nD in embeddings_ND.tensor_split(ends)])


@cache
def token_counts(folder: str) -> Embedder:
    return Embedder(folder)


def wrong_pairs(rewards: Tensor, scale: str, texts: list[str], rows: list[dict], **_) -> Tensor:
    """The paper's DRA on a tiny task with the similarities of `process_smi`: is it the group's pairs, or any?"""
    embedder = token_counts("tiny_chain/embedder" if is_chain(rows) else "tiny/embedder")
    smi_PG = process_smi(embedder.encode(texts), rewards.shape[-1]).view_as(rewards)
    return group_advantages(apply_weights(rewards, weights_of_smi(smi_PG)), scale)


def partial_credit(texts: Sequence[str], grades: Sequence[Grade], **_) -> list[float]:
    """1 if right; else half of the share of a solution's additions that are right, 0 if it shows none."""
    rewards = []
    for text, grade in zip(texts, grades, strict=True):
        right = [int(a) + int(b) == int(c) for a, b, c in ADDITION.findall(text)]
        rewards.append(1.0 if grade.correct else 0.5 * sum(right) / max(len(right), 1))
    return rewards
