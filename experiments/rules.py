"""Other papers' ways to reward diversity, and controls, as rules for the hook `dra.advantages`: each a few lines.

    python dra_grpo.py --config configs/chain.toml dra.advantages=experiments/rules.py:ucpo

All get the same similarity as DRA, and the advantages of the raw rewards (docs/rewards.md). Where a method counts
modes, their soft counts come from cosines to the power of 8, as in the arm `advantage`. Formulas are those of the
papers, or of their code where it says more; what differs is said. Settings that need no rule (KL, clip-higher) are arms
of plan.toml.
"""
from math import comb

import torch
from torch import Tensor

from reward import adjust, diversity_weights, dra_advantages, group_advantages, redistribute
from tiny import task as sums
from tiny_chain import task as chain

# P prompts, G completions of each

POWER = 8.0


def right_weights(similarity_PGG: Tensor, correct_PG: Tensor) -> Tensor:
    """1 / soft count of a completion's kind among the right answers of its group: (P, G), in (0, 1]."""
    return diversity_weights(similarity_PGG, sharpen=POWER, correct=correct_PG)


def above_mean(values_PG: Tensor, correct_PG: Tensor) -> Tensor:
    """Values minus their mean over the right answers of the group, 0 at wrong ones; so the sum is 0."""
    mean_P1 = (values_PG * correct_PG).sum(-1, keepdim=True) / correct_PG.sum(-1, keepdim=True).clamp(min=1)
    return (values_PG - mean_P1) * correct_PG


# ------------------------------------------------------------------------------------------------ published methods


def ucpo(advantages: Tensor, correct: Tensor, logprobs: Tensor, lengths: Tensor, **_) -> Tensor:
    """UCPO (arXiv:2605.00365, verl estimator "iq"): right answers get A_i n [(1 - tau) / n + tau (1/q_i) / sum 1/q_j].

    q_i is the softmax over the group of the mean log-prob per token, n how many are right, tau = 0.2.
    """
    tau, mean_PG = 0.2, logprobs / lengths
    share_PG = (-mean_PG).masked_fill(~correct, -torch.inf).softmax(-1).nan_to_num()    # nan where none is right
    return torch.where(correct, advantages * (1 - tau + tau * correct.sum(-1, keepdim=True) * share_PG), advantages)


def additive(advantages: Tensor, similarity: Tensor, correct: Tensor, **_) -> Tensor:
    """Geometric GRPO (ICML 2026, "G2RPO"): A_i + beta x rarity of the mode, for right answers, here with the mean over
    them taken off so that their sum stays; beta = 0.2, rarity 1 / soft count in units of its mean."""
    weights_PG = right_weights(similarity, correct)
    mean_P1 = (weights_PG * correct).sum(-1, keepdim=True) / correct.sum(-1, keepdim=True).clamp(min=1)
    return advantages + 0.2 * above_mean(weights_PG / mean_P1.clamp(min=1e-6), correct)


def zero_sum(advantages: Tensor, similarity: Tensor, correct: Tensor, **_) -> Tensor:
    """Shared advantages, and 0.2 (w - 1) with weights w of mean 1 in groups that are all right: a bonus of sum 0."""
    weights_PG = right_weights(similarity, correct)
    credit_PG = 0.2 * (weights_PG / weights_PG.mean(-1, keepdim=True) - 1)
    return redistribute(advantages, weights_PG, correct) + credit_PG * correct.all(-1, keepdim=True)


def setpo(advantages: Tensor, similarity: Tensor, correct: Tensor, **_) -> Tensor:
    """SetPO (arXiv:2602.01062): A_i + lambda x what the answer adds to the group's diversity, leave-one-out.

    Diversity is the mean distance 1 - cosine of two right answers; lambda = 0.2, and the marginals are in units of
    their standard deviation, as the advantages are.
    """
    others_PG = (correct.sum(-1, keepdim=True) - 1).clamp(min=1)
    distance_PG = ((1 - similarity.clamp(min=0)) * correct[:, None, :]).sum(-1) / others_PG
    centred_PG = above_mean(distance_PG, correct)
    deviation_P1 = (centred_PG.square().sum(-1, keepdim=True) / others_PG).sqrt()
    return advantages + 0.2 * centred_PG / (deviation_P1 + 1e-2)


def passk(correct: Tensor, **_) -> Tensor:
    """Pass@k training (arXiv:2508.10751), k = 4: each subset of k is rewarded by its best, in closed form.

    It needs no embedding and is blind to how an answer is right.
    """
    k, G, values_PG = 4, correct.shape[-1], torch.zeros(correct.shape)
    for p, right in enumerate(correct.sum(-1).tolist()):
        wrong = G - right
        mean = 1 - comb(wrong, k) / comb(G, k)
        if 0 < mean < 1:
            deviation = (mean * (1 - mean)) ** 0.5
            at_wrong = 1 - mean - comb(wrong - 1, k - 1) / comb(G - 1, k - 1)
            values_PG[p] = torch.where(correct[p], 1 - mean, at_wrong) / deviation
    return values_PG


def unlikeliness(rewards: Tensor, scale: str, logprobs: Tensor, lengths: Tensor, **_) -> Tensor:
    """Unlikeliness reward (arXiv:2506.02355): R_i (1 - 0.25 rank_i / G), rank 0 the least likely by mean log-prob."""
    rank_PG = (logprobs / lengths).argsort(-1).argsort(-1)
    return group_advantages(rewards * (1 - 0.25 * rank_PG / rewards.shape[-1]), scale)


def darling(rewards: Tensor, similarity: Tensor, **_) -> Tensor:
    """DARLING (arXiv:2509.02534): R_i x diversity, the mean distance to the group over its maximum; no std.

    Its partition by a trained classifier is replaced by cosines, and its token mean by the loss of the settings.
    """
    distance_PG = (1 - similarity).sum(-1)
    diversity_PG = distance_PG / distance_PG.amax(-1, keepdim=True).clamp(min=1e-6)
    return group_advantages(rewards * diversity_PG, "none")


def mmr(rewards: Tensor, similarity: Tensor, scale: str, **_) -> Tensor:
    """MMR-GRPO (arXiv:2601.09085): greedily, lambda R_i - (1 - lambda) max cosine to those chosen before, lambda the
    sigmoid of the rewards' std; within a group, where its code pools prompts."""
    lambda_P1 = rewards.std(-1, keepdim=True).sigmoid()
    values_PG, left_PG = torch.zeros_like(rewards), torch.ones_like(rewards, dtype=torch.bool)
    nearest_PG, rows_P = torch.zeros_like(rewards), torch.arange(len(rewards))
    for _ in range(rewards.shape[-1]):
        marginal_PG = lambda_P1 * rewards - (1 - lambda_P1) * nearest_PG
        best_P = marginal_PG.masked_fill(~left_PG, -torch.inf).argmax(-1)
        values_PG[rows_P, best_P], left_PG[rows_P, best_P] = marginal_PG[rows_P, best_P], False
        nearest_PG = torch.maximum(nearest_PG, similarity[rows_P, best_P])
    return group_advantages(values_PG, scale)


# ------------------------------------------------------------------------------------------------ controls


def is_chain(rows: list[dict]) -> bool:
    """Which tiny task the problems are of."""
    return rows[0]["problem"].count("+") == 3


def strategies(texts: list[str], rows: list[dict]) -> list[str | None]:
    """The true strategy of each completion, of whichever tiny task the problems are."""
    label = chain.strategy if is_chain(rows) else sums.strategy
    return [label(text, rows[i * len(rows) // len(texts)]) for i, text in enumerate(texts)]


def same_strategy(texts: list[str], rows: list[dict]) -> Tensor:
    """(P, G, G): 1 for two completions of one strategy and on the diagonal, else 0."""
    labels = [label or f"none {i}" for i, label in enumerate(strategies(texts, rows))]
    numbers = {label: number for number, label in enumerate(dict.fromkeys(labels))}
    kind_PG = torch.tensor([numbers[label] for label in labels]).view(len(rows), -1)
    return (kind_PG[:, :, None] == kind_PG[:, None, :]).float()


def oracle_reward(rewards: Tensor, correct: Tensor, scale: str, texts: list[str], rows: list[dict], **_) -> Tensor:
    """The paper's DRA with a kernel that knows the strategies."""
    return dra_advantages(rewards, same_strategy(texts, rows), correct, scale)[-1]


def oracle_advantage(rewards: Tensor, correct: Tensor, scale: str, texts: list[str], rows: list[dict], **_) -> Tensor:
    """`apply = "advantage"` and a bonus of 1 with a kernel that knows the strategies."""
    return dra_advantages(rewards, same_strategy(texts, rows), correct, scale, apply="advantage", bonus=1.0)[-1]


def bonus_alone(advantages: Tensor, correct: Tensor, **_) -> Tensor:
    """The bonus of 1 in groups that are all right, and nothing shared: what it does without diversity."""
    return advantages + correct.all(-1, keepdim=True)


def shuffled_reward(rewards: Tensor, similarity: Tensor, scale: str, **_) -> Tensor:
    """The paper's DRA, each completion with the weight of the next one: is it the meaning or any reweighting?

    Completions of a group are drawn alike, so a turn by one is a random permutation.
    """
    weights_PG = diversity_weights(similarity).roll(1, -1)
    return group_advantages(adjust(rewards, similarity, weights_G=weights_PG)[-1], scale)


def shuffled_advantage(rewards: Tensor, similarity: Tensor, correct: Tensor, scale: str, **_) -> Tensor:
    """`apply = "advantage"` and a bonus of 1, each right answer with the weight of the next right one."""
    weights_PG = right_weights(similarity, correct)
    for weights_G, correct_G in zip(weights_PG, correct):
        weights_G[correct_G] = weights_G[correct_G].roll(1)
    return dra_advantages(rewards, similarity, correct, scale, apply="advantage", bonus=1.0,
                          weights_G=weights_PG)[-1]
