"""What each rule does to a policy in expectation, without sampling: a bandit of strategies, all groups enumerated.

A policy picks strategy k with probability p_k (softmax of logits theta) and is right with probability q_k (sigmoid of
phi_k). Two completions of one strategy have similarity 1, of two strategies `base`, right or wrong. A group of G = 8
over K = 4 strategies x right or wrong has 6,435 compositions; the expected policy gradient is their sum, weighted by
the multinomial probability of each:

    d theta_k = E[sum_i A_i (1[i is k] - p_k)] / G          d phi_k = E[sum_i A_i 1[i is k] (r_i - q_k)] / G

    python -m experiments bandit
"""
import itertools
import math
from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor

from experiments import rules
from experiments.tables import Result, average, by_arm, name_of, shares_and_skills, table
from reward import dra_advantages, group_advantages

# C compositions, G completions of a group, K strategies

G, K = 8, 4
SHARES = (0.4, 0.3, 0.2, 0.1)
BASE = 0.757                                            # cosine of two strategies' token counts, in both tiny tasks
Rule = Callable[[Tensor, Tensor], Tensor]               # (similarity (C, G, G), right (C, G)) -> advantages (C, G)


@cache
def groups() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All compositions: in how many orders each comes (C,); how many of each cell (C, 2 K), cells being (strategy,
    right) and (strategy, wrong) in turn; the strategy of each completion (C, G), and whether it is right (C, G)."""
    bars = itertools.combinations(range(G + 2 * K - 1), 2 * K - 1)
    counts = torch.tensor([[b - a - 1 for a, b in zip((-1, *bar), (*bar, G + 2 * K - 1))] for bar in bars])
    cells = torch.stack([torch.arange(2 * K).repeat_interleave(row) for row in counts])
    ways = [math.factorial(G) / math.prod(map(math.factorial, row)) for row in counts.tolist()]
    return torch.tensor(ways).double(), counts, cells // 2, (cells % 2 == 0).double()


def similarity(base: float) -> Tensor:
    """(C, G, G): 1 within a strategy, `base` between two."""
    *_, strategy_CG, _ = groups()
    return torch.where(strategy_CG[:, :, None] == strategy_CG[:, None, :], 1.0, base).double()


def gradients(advantages_CG: Tensor, shares: Tensor, skills: Tensor) -> tuple[Tensor, Tensor]:
    """(d theta, d phi), each (K,), per unit of learning rate."""
    ways_C, counts, strategy_CG, right_CG = groups()
    cells = torch.stack((shares * skills, shares * (1 - skills)), -1).flatten()
    chance_C = ways_C * (cells ** counts).prod(-1)
    one_CGK = torch.nn.functional.one_hot(strategy_CG, K).double()
    theta_K = (chance_C[:, None] * (advantages_CG[..., None] * (one_CGK - shares)).sum(1)).sum(0) / G
    surprise_CG = advantages_CG * (right_CG - skills[strategy_CG])
    phi_K = (chance_C[:, None] * (surprise_CG[..., None] * one_CGK).sum(1)).sum(0) / G
    return theta_K, phi_K


def push(rule: Rule, base: float, skill: float, shares: tuple[float, ...] = SHARES) -> tuple[float, float]:
    """(d log(p_first / p_last), dP(right) by skill) per unit rate, for strategies of equal `skill`.

    The first is below 0 where the rule pulls towards equal shares.
    """
    p, q = torch.tensor(shares).double(), torch.full((K,), skill).double()
    theta_K, phi_K = gradients(rule(similarity(base), groups()[-1]), p, q)
    return (theta_K[0] - theta_K[-1]).item(), (p * q * (1 - q) * phi_K).sum().item()


def dra(similarity_CGG: Tensor, right_CG: Tensor, scale: str = "std", **options) -> Tensor:
    return dra_advantages(right_CG, similarity_CGG, right_CG > 0, scale, **options)[-1]


def by_rule(rule: Callable[..., Tensor], similarity_CGG: Tensor, right_CG: Tensor, scale: str = "std") -> Tensor:
    """A rule of rules.py, with what it gets in a run as far as a bandit has it."""
    return rule(similarity=similarity_CGG, rewards=right_CG, correct=right_CG > 0, scale=scale,
                advantages=group_advantages(right_CG, scale))


RULES: dict[str, Rule] = {
    "grpo": lambda _, right: group_advantages(right),
    "dra": dra,
    "dra_sharp": partial(dra, sharpen=8.0),
    "advantage": partial(dra, apply="advantage", sharpen=8.0),
    **{f"advantage_bonus{suffix}": partial(dra, apply="advantage", sharpen=8.0, bonus=bonus)
       for suffix, bonus in (("02", 0.2), ("05", 0.5), ("", 1.0), ("20", 2.0))},
    **{name: partial(by_rule, getattr(rules, name))
       for name in ("bonus_alone", "zero_sum", "additive", "setpo", "passk", "darling")},
    "Dr. GRPO": lambda _, right: group_advantages(right, "none"),
    "Dr. GRPO, DRA": partial(dra, scale="none"),
    "Dr. GRPO, shared": partial(dra, scale="none", apply="advantage", sharpen=8.0),
    "Dr. GRPO, shared, bonus 1": partial(dra, scale="none", apply="advantage", sharpen=8.0, bonus=1.0),
}


def pushes() -> str:
    """The table of docs/experiments.md: an exact kernel, and similarities as token counts give them."""
    rows = []
    for name, rule in RULES.items():
        found = [push(rule, base, skill) for base, skill in ((0.0, 0.7), (BASE, 0.7), (BASE, 0.95))]
        rows.append([name_of(name), *(f"{round(drift, 4) + 0.0:+.3f}" for drift, _ in found),
                     *(f"{gain:.4f}" for _, gain in found)])
    return table(["d log(p_first / p_last); dP(right)", "true kernel, skill .7", "cosine .757, skill .7",
                  "cosine .757, skill .95", "dP, true kernel, .7", "dP, .757, .7", "dP, .757, .95"], rows)


def beside_runs(results: list[Result], plan: dict, setting: str) -> str:
    """Push of each strategy in thousandths, measured / predicted, of the arms that RULES has, in a setting with GRPO.

    Measured: sum of the advantages of a strategy's completions per completion, second half of the steps, minus its
    share of what completions of no strategy lose to the four. Predicted: by enumeration from shares and skills after
    training, over the four strategies alone.
    """
    rows, labels = [], []
    for arm, seeds in by_arm(results, setting, plan["settings"][setting]["arms"]).items():
        if arm not in RULES:
            continue
        advantages_CG, pairs = RULES[arm](similarity(BASE), groups()[-1]), []
        for result in seeds.values():
            labels = [label for label in result.before["labels"] if label not in ("None", "other order")]
            share, skill = shares_and_skills(result.after)
            p_K, q_K = (torch.tensor([part.get(label, 0.0) for label in labels]).double() for part in (share, skill))
            p_K = p_K / p_K.sum()
            theta_K, _ = gradients(advantages_CG, p_K, q_K)
            push_K = torch.tensor([result.train["push"].get(label, 0.0) for label in labels])
            pairs.append(list(zip((push_K - p_K * push_K.sum()).tolist(), theta_K.tolist())))
        rows.append([name_of(arm), *(" / ".join(average((1000 * pair[k][i] for pair in pairs), "+.1f") for i in (0, 1))
                                     for k in range(K))])
    return table(["method", *labels], rows) if rows else "No runs yet."
