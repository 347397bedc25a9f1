"""From texts to advantages: grade -> embedding -> SMI -> adjusted reward -> advantage.

Diversity-aware Reward Adjustment (DRA, arXiv:2505.09655) divides the reward of completion i of a prompt by its
redundancy in the group C of completions of the same prompt,

    R~_i = R_i / (1 + SMI({o_i}, C \\ {o_i})),        SMI_i = sum_{j != i} cos(e_i, e_j)      (graph cut)

with e the embeddings of the completions (embedder.py). This file ends where the gradient begins: everything here is
arithmetic on (P, G) tensors without autograd. All functions take leading batch axes, so one group is (G,) and many are
(P, G); groups never see each other. At least float32 inside, float64 stays float64, inputs are not modified.

Departures from the paper, each an option whose published value is `clamp=False, negative="divide"`:
(1) negative cosines count as 0 (`clamp`), so 1 + SMI is in [1, G] and no reward changes its sign;
(2) rewards <= 0 are left alone (`negative="keep"`): dividing them punishes a redundant wrong answer *less*;
(3) the diagonal of the cosine matrix is set to 1, so a zero embedding has 1 + SMI = 1 instead of 0;
(4) sharper kernels, counting right completions only, and weights of mean 1 are offered; none is on by default;
(5) `apply = "advantage"` leaves the rewards alone and shares the positive advantages out anew (`redistribute`).

Imports nothing of ours, so the file can be copied alone: grader (grader.py), embedder (embedder.py) and the functions
of users are handed to `Rewarder`.

    python reward.py         prints a small example with and without DRA
"""
import math
import re
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from functools import partial
from numbers import Real
from typing import Annotated, Any, Literal, Protocol

import torch
from torch import Tensor

# P prompts, G completions of each, D embedding size


@dataclass(frozen=True)
class CorrectConfig:
    correct: str = field(default="", kw_only=True)
    """"path.py:function" called with (texts, problems), one of each per completion, in place of the grader; it returns
    for each whether it is right, or (right, the answer that it read); golds are not needed; empty for the grader"""


@dataclass(frozen=True)
class RewardConfig(CorrectConfig):
    functions: dict[str, float] = field(default_factory=lambda: {"accuracy": 1.0})
    """reward functions and their weights: accuracy, format, cosine, or "path.py:function"; their weighted sum is the
    raw reward"""
    format: str = r"(<think>)?((?!</?think>).)*\n</think>\n((?!</?think>).)*"
    """regular expression that the assistant's whole turn must match for the format reward; a <think> that the chat
    template writes is part of it"""
    cosine: Literal["tokens", "published"] = "tokens"
    """length for the cosine reward: tokens / max_new_tokens, at most 1; or the published characters / 1000, which
    oscillates in long answers"""
    advantage: Literal["auto", "std", "none"] = "auto"
    """divide advantages by the group's standard deviation (std) or not (none); auto: none for the dr_grpo loss, else
    std"""
    workers: Annotated[int, ">= 1", "free"] = 2
    """grader processes per rank; they start when the first answer needs algebra"""
    timeout_s: Annotated[float, "> 0", "free"] = 5.0
    """an answer that takes longer to verify is wrong (reason "timeout")"""


@dataclass(frozen=True)
class DraConfig:
    enabled: bool = True
    """DRA; off is plain GRPO or Dr. GRPO"""
    apply: Literal["reward", "advantage"] = "reward"
    """what the weights 1 / (1 + SMI) change: the reward (the paper), or the positive advantages of right answers, whose
    sum is kept"""
    bonus: Annotated[float, ">= 0"] = 0.0
    """with apply = "advantage": what each answer of a group that is all right gets before sharing; 1 is its reward"""
    smi: Literal["graph_cut", "log_det"] = "graph_cut"
    """submodular mutual information of a completion and the rest of its group"""
    sharpen: Annotated[float, "> 0"] = 1.0
    """exponent on the cosines before summing; 1 is the paper, 4 to 8 tells strategies apart that share most of their
    words"""
    clamp: bool = True
    """count negative cosines as 0; false is the paper"""
    scope: Literal["all", "correct"] = "all"
    """whose similarity counts: the whole group (the paper) or its right completions only, as under apply =
    "advantage" always"""
    normalize: Literal["none", "mean"] = "none"
    """mean: scale the weights of a group to mean 1, so that DRA does not shrink the reward"""
    negative: Literal["keep", "divide"] = "keep"
    """what happens to rewards <= 0; divide is the paper"""
    embedder: str = "ibm-granite/granite-embedding-small-english-r2"
    """sentence-transformers folder or hub name, or "policy" for the mean of the policy's own hidden states (no second
    model)"""
    text: Literal["completion", "reasoning", "answer"] = "completion"
    """what is embedded: the whole completion; what stands before </think>, else before its last box; or the answer that
    was graded"""
    max_tokens: Annotated[int, ">= 0"] = 0
    """tokens of a text that are embedded; 0 for all of them, and an embedder that reads fewer than
    sampler.max_new_tokens is refused"""
    trust_remote_code: bool = False
    """run Python code that comes with the embedder's files"""
    weights: str = ""
    """research hook "path.py:function" called with (similarity (P, G, G), rewards (P, G), rows); the (P, G) tensor of
    floats it returns replaces the weights"""
    advantages: str = ""
    """research hook "path.py:function" called with named arguments (docs/rewards.md); the (P, G) tensor of floats it
    returns replaces the advantages"""


# ------------------------------------------------------------------------------------------------ the arithmetic of DRA


def upcast(x: Tensor) -> Tensor:
    return x.detach().to(torch.promote_types(x.dtype, torch.float32))


def require_finite(x: Tensor, what: str, group_axes: int = 1) -> None:
    """ValueError naming the first group (its index over the leading axes) with a non-finite value.

    A group is the last `group_axes` axes.
    """
    if not torch.isfinite(x).all():
        raise ValueError(f"{what} of group {torch.nonzero(~torch.isfinite(x))[0].tolist()[:-group_axes]} are "
                         "not finite")


def cosine_similarity(embeddings_GD: Tensor) -> Tensor:
    """Cosines of each group's embeddings with each other: (..., G, D) -> (..., G, G), in [-1, 1], diagonal exactly 1.

    A zero row has similarity 0 to the others. Raises ValueError naming the group for non-finite embeddings.
    Copy-pasteable with `upcast` and `require_finite`: needs only torch.
    """
    x_GD = upcast(embeddings_GD)
    largest_G1 = torch.maximum(x_GD.amax(-1, keepdim=True), -x_GD.amin(-1, keepdim=True))
    require_finite(largest_G1, "embeddings", group_axes=2)
    # squares must not underflow
    x_GD = x_GD / largest_G1.clamp(min=torch.finfo(x_GD.dtype).tiny)
    products_GG = x_GD @ x_GD.transpose(-1, -2)
    # a zero row has products 0
    scale_G = products_GG.diagonal(dim1=-2, dim2=-1).clamp(min=torch.finfo(x_GD.dtype).tiny).rsqrt()
    similarity_GG = (products_GG * scale_G[..., :, None] * scale_G[..., None, :]).clamp(-1, 1)
    similarity_GG.diagonal(dim1=-2, dim2=-1).fill_(1)                                          # (3)
    return similarity_GG


def graph_cut_smi(similarity_GG: Tensor) -> Tensor:
    """Redundancy of each completion in its group: SMI_i = sum_{j != i} s_ij   (graph cut, arXiv:2505.09655).

    (..., G, G) -> (..., G), in [0, G - 1] for similarities in [0, 1]. The diagonal is left out, so 1 + SMI is the
    paper's row sum. Copy-pasteable with `upcast`: needs only torch.
    """
    similarity_GG = upcast(similarity_GG)
    return similarity_GG.sum(-1) - similarity_GG.diagonal(dim1=-2, dim2=-1)


def log_det_smi(similarity_GG: Tensor, alpha: float = 1.0) -> Tensor:
    """I({i}; C \\ {i}) for f(A) = log det(I + alpha S_A): log K_ii + log (K^-1)_ii with K = I + alpha S.

    (..., G, G) -> (..., G), >= 0. One factorisation per group instead of one determinant per row: det of K without row
    and column i is det(K) (K^-1)_ii, and with K = L L^T that is a sum of squares, sum_k (L^-T)_ik ^ 2. Raises
    ValueError naming the group where K is not positive definite: cosines are positive semi-definite, and rounding them
    to half precision does not come near. Copy-pasteable with `upcast`: needs only torch.
    """
    K_GG = alpha * upcast(similarity_GG)
    K_GG.diagonal(dim1=-2, dim2=-1).add_(1)
    L_GG, failed = torch.linalg.cholesky_ex(K_GG)
    if failed.any():
        raise ValueError(f"similarities of group {torch.nonzero(failed)[0].tolist()} have no log-det: I + alpha S is "
                         "not positive definite; use cosines")
    one_GG = torch.eye(K_GG.shape[-1], dtype=K_GG.dtype, device=K_GG.device)
    # L^-T: half the time of L^-1 on a CPU
    inverse_GG = torch.linalg.solve_triangular(L_GG.transpose(-1, -2), one_GG, upper=True, left=False)
    return (K_GG.diagonal(dim1=-2, dim2=-1) * inverse_GG.square().sum(-1)).log().clamp(min=0)


def smi_values(similarity_GG: Tensor, smi: str = "graph_cut", sharpen: float = 1.0, clamp: bool = True,
               correct: Tensor | None = None) -> Tensor:
    """SMI of each completion with the rest of its group under DRA's options; see `diversity_weights` for them.

    Copy-pasteable with `upcast`, `require_finite`, `graph_cut_smi` and `log_det_smi`: needs only torch.
    """
    if similarity_GG.ndim < 2 or similarity_GG.shape[-1] != similarity_GG.shape[-2]:
        raise ValueError(f"similarity must be (..., G, G); got shape {tuple(similarity_GG.shape)}")
    if similarity_GG.shape[-1] < 2:
        raise ValueError("a group needs at least 2 completions (G >= 2) to have a diversity")
    if smi not in ("graph_cut", "log_det"):
        raise ValueError(f"smi must be graph_cut or log_det; got {smi!r}")
    if smi == "log_det" and sharpen != 1:
        raise ValueError(f"smi = log_det takes the plain cosine matrix: it does not go with sharpen = {sharpen}; use "
                         "sharpen = 1")
    if smi == "log_det" and correct is not None:
        raise ValueError("smi = log_det does not go with scope = correct; use scope = all")
    if sharpen != 1 and not clamp:
        raise ValueError(f"sharpen = {sharpen} does not go with clamp = false: powers of negative cosines; use "
                         "clamp = true")
    similarity_GG = upcast(similarity_GG)
    require_finite(similarity_GG, "similarities", group_axes=2)
    if smi == "log_det":
        return log_det_smi(similarity_GG)
    if clamp:
        similarity_GG = similarity_GG.clamp(min=0)                                              # (1)
    similarity_GG = similarity_GG**sharpen if sharpen != 1 else similarity_GG
    if correct is not None:
        if correct.shape != similarity_GG.shape[:-1]:
            raise ValueError(f"correct must have shape {tuple(similarity_GG.shape[:-1])}; got {tuple(correct.shape)}")
        similarity_GG = similarity_GG * correct.bool().unsqueeze(-2)
    return graph_cut_smi(similarity_GG)


def diversity_weights(similarity_GG: Tensor, smi: str = "graph_cut", sharpen: float = 1.0, clamp: bool = True,
                      correct: Tensor | None = None, normalize: str = "none") -> Tensor:
    """w_i = 1 / (1 + SMI_i), DRA's factor on a reward: (..., G, G) -> (..., G), in [1/G, 1] for clamped graph cut.

    `clamp`: negative cosines count as 0. `sharpen`: exponent on the cosines. `correct`: boolean (..., G), only these
    completions count as neighbours. `normalize="mean"`: weights of a group are scaled to mean 1. Raises ValueError for
    options that exclude each other, shapes that do not fit, G < 2, and, naming the group, for non-finite values and for
    |1 + SMI| < 1e-6, which unclamped cosines can produce. Copy-pasteable with `smi_values` and `weights_of_smi`: needs
    only torch.
    """
    return weights_of_smi(smi_values(similarity_GG, smi, sharpen, clamp, correct), normalize)


def weights_of_smi(smi_G: Tensor, normalize: str = "none") -> Tensor:
    """1 / (1 + SMI), or the same scaled to mean 1 in each group; (..., G) -> (..., G).

    Errors as `diversity_weights`.
    """
    if normalize not in ("none", "mean"):
        raise ValueError(f"normalize must be none or mean; got {normalize!r}")
    density_G = 1 + smi_G
    if (density_G.abs() < 1e-6).any():
        group = torch.nonzero(density_G.abs() < 1e-6)[0].tolist()[:-1]
        raise ValueError(f"1 + SMI is 0 in group {group}: negative cosines cancel the self-similarity; use "
                         "clamp = true")
    weights_G = 1 / density_G
    return weights_G / weights_G.mean(-1, keepdim=True) if normalize == "mean" else weights_G


def apply_weights(rewards_G: Tensor, weights_G: Tensor, negative: str = "keep") -> Tensor:
    """R~ = R w; with `negative="keep"` a reward <= 0 stays as it is, with "divide" it is weighted like the others (the
    paper).

    Copy-pasteable: needs only torch.
    """
    if negative not in ("keep", "divide"):
        raise ValueError(f"negative must be keep or divide; got {negative!r}")
    weighted_G = rewards_G * weights_G
    if negative == "divide":
        return weighted_G
    return torch.where(rewards_G > 0, weighted_G, rewards_G.to(weighted_G.dtype))                               # (2)


def adjust(rewards_G: Tensor, similarity_GG: Tensor, smi: str = "graph_cut", sharpen: float = 1.0, clamp: bool = True,
           scope: str = "all", correct: Tensor | None = None, normalize: str = "none", negative: str = "keep",
           weights_G: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """DRA with its parts: (SMI, weights, R~), each (..., G); `weights_G` replaces the weights 1 / (1 + SMI).

    Options and errors are those of `adjust_rewards`. Copy-pasteable with `upcast`, `require_finite`,
    `smi_values`, `weights_of_smi` and `apply_weights`: needs only torch.
    """
    if scope not in ("all", "correct"):
        raise ValueError(f"scope must be all or correct; got {scope!r}")
    if rewards_G.shape != similarity_GG.shape[:-1]:
        raise ValueError(f"rewards {tuple(rewards_G.shape)} do not fit similarity {tuple(similarity_GG.shape)}")
    rewards_G = upcast(rewards_G)
    require_finite(rewards_G, "rewards")
    if scope == "all":
        correct = None
    elif correct is None:
        correct = rewards_G > 0
    smi_G = smi_values(similarity_GG, smi, sharpen, clamp, correct)
    if weights_G is None:
        weights_G = weights_of_smi(smi_G, normalize)
    return smi_G, weights_G, apply_weights(rewards_G, weights_G, negative)


def adjust_rewards(rewards_G: Tensor, similarity_GG: Tensor, smi: str = "graph_cut", sharpen: float = 1.0,
                   clamp: bool = True, scope: str = "all", correct: Tensor | None = None, normalize: str = "none",
                   negative: str = "keep") -> Tensor:
    """DRA: R~_i = R_i / (1 + SMI_i), rewards (..., G) and similarities (..., G, G) -> (..., G).

    `scope="correct"` counts only the right completions as neighbours: `correct`, a boolean mask, or reward > 0 when it
    is None. The other options are those of `diversity_weights` and `apply_weights`; `clamp=False, negative="divide"` is
    the published arithmetic. Raises ValueError as `diversity_weights` does, and for non-finite rewards. Copy-pasteable
    with `adjust`: needs only torch.
    """
    *_, adjusted_G = adjust(rewards_G, similarity_GG, smi, sharpen, clamp, scope, correct, normalize, negative)
    return adjusted_G


def group_advantages(rewards_G: Tensor, scale: str = "std", eps: float = 1e-4) -> Tensor:
    """Advantage of each completion over its group, (..., G) -> (..., G).

    "std": (r - mean) / (std + eps), std with ddof 1 (GRPO, arXiv:2402.03300). "none": r - mean (Dr. GRPO,
    arXiv:2503.20783). Raises ValueError for G < 2, non-finite rewards (naming the group) and unknown scales.
    Copy-pasteable with `upcast` and `require_finite`: needs only torch.
    """
    if rewards_G.ndim < 1 or rewards_G.shape[-1] < 2:
        raise ValueError(f"rewards must be (..., G) with G >= 2; got shape {tuple(rewards_G.shape)}")
    rewards_G = upcast(rewards_G)
    require_finite(rewards_G, "rewards")
    centred_G = rewards_G - rewards_G.mean(-1, keepdim=True)
    match scale:
        case "std":
            return centred_G / (rewards_G.std(-1, keepdim=True) + eps)
        case "none":
            return centred_G
    raise ValueError(f"scale must be std or none; got {scale!r}")


def redistribute(advantages_G: Tensor, weights_G: Tensor, correct_G: Tensor, bonus: float = 0.0) -> Tensor:
    """Shares the positive advantages of a group's right answers out anew, by their weights; the sum of them stays.

        A_i <- w_i A_i sum_j A_j / sum_j w_j A_j        sums over the right answers j (`correct_G`) with A_j > 0

    All others keep theirs. UCPO (arXiv:2605.00365, there with tau = 0.2; here tau = 1) does this with the inverse of
    the policy's probability of an answer as w; here w = 1 / (1 + SMI among the right answers), DRA's estimate of it.
    What differs from dividing the reward (the paper): that moves the mean and the std of the group, so common right
    answers fall below the mean and are pushed down, and in groups that are all right the std blows up what little the
    weights differ. Here no advantage changes its sign, and wrong answers are neither excused nor blamed.

    Where all rewards are equal there is nothing to share. So each answer of a group that is all right first gets
    `bonus`, in the unit of an advantage: with 1 it is as if the baseline of such a group were 0. Sharing pulls equals
    together, and the sum is > 0: E[bonus sum_i grad log p_i; all right] is bonus times the gradient of P(all right), so
    the bonus pays for accuracy too, where one of sum 0 costs some (docs/experiments.md).

    (..., G) each, `correct_G` boolean. Raises ValueError naming the group for weights of right answers that are not
    > 0. Copy-pasteable with `upcast`: needs only torch.
    """
    advantages_G, weights_G, correct_G = upcast(advantages_G), upcast(weights_G), correct_G.bool()
    if (unfit_G := correct_G & ~(weights_G > 0)).any():
        raise ValueError(f"weights of right answers of group {torch.nonzero(unfit_G)[0].tolist()[:-1]} are not > 0: "
                         "advantages cannot be shared out by them")
    advantages_G = torch.where(correct_G.all(-1, keepdim=True), advantages_G + bonus, advantages_G)
    positive_G = torch.where(correct_G, advantages_G.clamp(min=0), 0)
    weighted_G = positive_G * weights_G
    # the sum is 0 where there is nothing to share
    scale_1 = positive_G.sum(-1, keepdim=True) / weighted_G.sum(-1, keepdim=True).clamp(min=1e-30)
    return torch.where(positive_G > 0, weighted_G * scale_1, advantages_G)


OPTIONS = ("apply", "smi", "sharpen", "clamp", "scope", "normalize", "negative", "bonus")


def dra_advantages(rewards_G: Tensor, similarity_GG: Tensor, correct_G: Tensor, scale: str = "std", *,
                   apply: str = "reward", smi: str = "graph_cut", sharpen: float = 1.0, clamp: bool = True,
                   scope: str = "all", normalize: str = "none", negative: str = "keep", bonus: float = 0.0,
                   weights_G: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All of DRA on groups, by the options of `DraConfig` (OPTIONS): (SMI, weights, R~, advantages), each (..., G).

    `correct_G`: which answers are right, boolean. `scale`: of `group_advantages`. `weights_G` replaces the weights
    1 / (1 + SMI). With `apply="advantage"` R~ is R, SMI counts right answers only, and `redistribute` has the last
    word. Raises ValueError as `adjust`, `group_advantages` and `redistribute` do, and for options that would have no
    effect. Copy-pasteable with `adjust`, `group_advantages` and `redistribute`: needs only torch.
    """
    if apply not in ("reward", "advantage"):
        raise ValueError(f"apply must be reward or advantage; got {apply!r}")
    if apply == "reward" and bonus:
        raise ValueError(f"bonus = {bonus} acts under apply = advantage only; use bonus = 0")
    if apply == "advantage":
        scope = "correct"
        for name, value, needed in (("smi", smi, "graph_cut"), ("clamp", clamp, True), ("normalize", normalize, "none"),
                                    ("negative", negative, "keep")):
            if value != needed:
                raise ValueError(f"apply = advantage does not go with {name} = {value}; use {name} = {needed}")
    smi_G, weights_G, adjusted_G = adjust(rewards_G, similarity_GG, smi, sharpen, clamp, scope, correct_G, normalize,
                                          negative, weights_G)
    if apply == "reward":
        return smi_G, weights_G, adjusted_G, group_advantages(adjusted_G, scale)
    advantages_G = redistribute(group_advantages(rewards_G, scale), weights_G, correct_G, bonus)
    return smi_G, weights_G, rewards_G, advantages_G


# ------------------------------------------------------------------------------------------------ reward functions
# Called with keyword arguments: texts (the assistant's turns), golds, rows (the problems' columns), grades, lengths
# (tokens), max_new_tokens; each is a list with one entry per completion (but the last) and so is the result. None is
# "not applicable": it adds nothing to the sum and stays out of the function's mean, as in TRL.

RewardFunction = Callable[..., Sequence[float | None]]


def per_completion(what: str, values: Any, n: int) -> list:
    """`values`, which the user's function `what` returned, as a list of n, numpy's and torch's scalars as Python's.

    Raises ValueError for anything but a list, tuple, 1-D array or 1-D tensor with one entry per completion.
    """
    if not (isinstance(values, Sequence) and not isinstance(values, str | bytes) or getattr(values, "ndim", None) == 1):
        shape = f" of shape {tuple(values.shape)}" if hasattr(values, "shape") else ""
        if isinstance(values, Coroutine):
            values.close()                              # or Python says later, and elsewhere, that nobody awaited it
        raise ValueError(f"{what} returned an object of type {type(values).__name__}{shape}; expected a list with one "
                         "value per completion")
    if len(values) != n:
        raise ValueError(f"{what} returned {len(values)} values for {n} completions")
    return [value.item() if getattr(value, "ndim", None) == 0 else value for value in values]


class Grade(Protocol):
    """A verdict on one completion, such as answers.Grade."""
    correct: bool
    reason: str
    answer: str | None


def accuracy_reward(grades: Sequence[Grade], **_) -> list[float]:
    return [float(item.correct) for item in grades]


def format_reward(pattern: re.Pattern, texts: Sequence[str], **_) -> list[float]:
    """1 where the whole text matches."""
    return [float(pattern.fullmatch(text) is not None) for text in texts]


def cosine_reward(progress: str, texts: Sequence[str], grades: Sequence[Grade], lengths: Sequence[int],
                  max_new_tokens: int, **_) -> list[float]:
    """Right: 1 down to 0.5 with length; wrong: 0 down to -0.5 (arXiv:2502.03373, with the numbers of the official
    recipes).

    Progress 0..1 is "tokens" / max_new_tokens, at most 1; "published" is characters / 1000 without an end, so 2,000
    characters are as good as none.
    """
    shares = [len(text) / 1000 for text in texts] if progress == "published" else [
        min(length / max_new_tokens, 1.0) for length in lengths]
    return [item.correct - 0.5 + 0.25 * (1 + math.cos(math.pi * share))
            for item, share in zip(grades, shares, strict=True)]


def reward_function(name: str, config: RewardConfig) -> RewardFunction:
    """The function of ours that a key of `reward.functions` names, with its settings; ValueError if there is none."""
    match name:
        case "accuracy":
            return accuracy_reward
        case "format":
            try:
                return partial(format_reward, re.compile(config.format, re.DOTALL))
            except re.error as error:
                raise ValueError(f"reward.format = {config.format!r} is not a regular expression: {error}") from None
        case "cosine":
            return partial(cosine_reward, config.cosine)
    raise ValueError(f'reward.functions: {name!r} is not known; use accuracy, format, cosine or "path.py:function"')


def hooked(key: str, values_PG: Any, raw_PG: Tensor) -> Tensor:
    """What the function of the hook `key` returned, like the rewards; ValueError for anything but (P, G) finite
    floats."""
    if not isinstance(values_PG, Tensor) or not values_PG.is_floating_point():
        raise ValueError(f"{key} returned {getattr(values_PG, 'dtype', type(values_PG).__name__)}; expected a tensor "
                         "of floats")
    if values_PG.shape != raw_PG.shape:
        raise ValueError(f"{key} returned shape {tuple(values_PG.shape)}; expected {tuple(raw_PG.shape)}")
    require_finite(values_PG, f"{key}: the values")
    return values_PG.detach().to(raw_PG)


def graded_parts(texts: Sequence[str], grades: Sequence[Grade]) -> list[str]:
    """What of each text was graded: its answer or, where none was found, all of it.

    ValueError for a right text without an answer: then nobody knows what was graded.
    """
    if any(grade.correct and not grade.answer for grade in grades):
        raise ValueError('dra.text = "answer" needs the answer of each right completion; let the function of '
                         "reward.correct return pairs (right, answer)")
    return [grade.answer or text for text, grade in zip(texts, grades, strict=True)]


# ------------------------------------------------------------------------------------------------ stateful pieces


@dataclass(frozen=True)
class Scores:
    """What `Rewarder` computed for P groups of G completions; tensors are (P, G)."""
    grades: list[Grade]                                 # P * G
    correct: Tensor                                     # bool
    parts: dict[str, Tensor]                            # each reward function's value before its weight; nan for None
    raw: Tensor                                         # weighted sum of the parts that are not nan
    # of each group: mean cosine of two different completions; None without DRA
    similarity: list[float | None]
    cut: list[bool]                                     # P * G: the embedder read only the beginning
    smi: Tensor                                         # 0 without DRA
    weight: Tensor                                      # 1 without DRA
    adjusted: Tensor
    advantage: Tensor
    # of grading and the reward functions, of embedding, of DRA's arithmetic
    seconds: dict[str, float]

    def of(self, p: int, g: int) -> dict:
        """What samples.jsonl says of completion `g` of prompt `p`."""
        i = p * self.raw.shape[1] + g
        grade = self.grades[i]
        parts = {name: None if part[p, g].isnan() else part[p, g].item() for name, part in self.parts.items()}
        return {"correct": grade.correct, "reason": grade.reason, "answer": grade.answer, "rewards": parts,
                "reward": self.raw[p, g].item(), "cut": self.cut[i], "smi": self.smi[p, g].item(),
                "weight": self.weight[p, g].item(), "adjusted": self.adjusted[p, g].item(),
                "advantage": self.advantage[p, g].item()}


class GraderLike(Protocol):
    """What `Rewarder` needs of grader.Grader: a verdict on each text, given the problem that it answers."""

    def grade_rows(self, texts: Sequence[str], rows: Sequence[dict]) -> list[Grade]: ...


class EmbedderLike(Protocol):
    """What `Rewarder` needs of embedder.Embedder: vectors (N, D), and which texts it read only the beginning of."""

    def encode(self, texts: list[str], tokens: Sequence[list[int]] | None = None) -> Tensor: ...

    def cut(self, texts: list[str], tokens: Sequence[list[int]] | None = None) -> list[bool]: ...


class Rewarder:
    """Texts of whole groups in, advantages out, by the `[reward]` and `[dra]` sections."""

    def __init__(self, functions: dict[str, tuple[RewardFunction, float]], dra: DraConfig, scale: str,
                 max_new_tokens: int, grader: GraderLike, embedder: EmbedderLike | None, opening: str = "",
                 hook: Callable[..., Tensor] | None = None, advantages: Callable[..., Tensor] | None = None):
        """`functions`: by name, with their weights. `scale`: of `group_advantages`. `embedder`: None without DRA.
        `opening`: what the chat template has written of the assistant's turn, before the completion. `hook`,
        `advantages`: the functions that `dra.weights` and `dra.advantages` name.
        """
        self.functions, self.dra, self.scale, self.max_new_tokens = functions, dra, scale, max_new_tokens
        self.grader, self.embedder, self.opening = grader, embedder, opening
        self.hook, self.advantages = hook, advantages
        self.options = {name: getattr(dra, name) for name in OPTIONS}

    def __call__(self, texts: list[str], rows: list[dict], lengths: list[int], group_size: int,
                 tokens: list[list[int]] | None = None, logprobs: list[float] | None = None) -> Scores:
        """`texts`, `lengths` (tokens) of P*G completions, group by group, and the P problems they answer (with what
        the grader and the functions need of them).

        `tokens` are the completions as sampled, which `dra.embedder = "policy"` reads; `logprobs` is the log-prob of
        each, summed over its tokens, for `dra.advantages`.
        """
        dra, start = self.dra, time.perf_counter()
        turns, rows_N = [self.opening + text for text in texts], [row for row in rows for _ in range(group_size)]
        grades = self.grader.grade_rows(turns, rows_N)
        correct_PG = torch.tensor([item.correct for item in grades]).view(-1, group_size)
        parts = {name: self.values(name, turns, rows_N, grades, lengths).view_as(correct_PG) for name in self.functions}
        raw_PG = self.total(parts)
        graded = time.perf_counter()

        smi_PG, weight_PG, adjusted_PG = torch.zeros_like(raw_PG), torch.ones_like(raw_PG), raw_PG
        advantage_PG = group_advantages(raw_PG, self.scale)
        similarity_P, cut, embedded = [None] * len(rows), [False] * len(texts), graded
        if dra.enabled:
            read = graded_parts(texts, grades) if dra.text == "answer" else texts
            embeddings_PGD = self.embedder.encode(read, tokens).view(*raw_PG.shape, -1)
            cut = self.embedder.cut(read, tokens)
            embedded = time.perf_counter()
            similarity_PGG = cosine_similarity(embeddings_PGD)
            similarity_P = (graph_cut_smi(similarity_PGG).mean(-1) / (group_size - 1)).tolist()
            weight_PG = self.hook and hooked("dra.weights", self.hook(similarity_PGG.clone(), raw_PG.clone(), rows),
                                             raw_PG)
            smi_PG, weight_PG, adjusted_PG, advantage_PG = dra_advantages(
                raw_PG, similarity_PGG, correct_PG, self.scale, weights_G=weight_PG, **self.options)
        if dra.enabled and self.advantages:
            weight_PG, adjusted_PG = torch.ones_like(raw_PG), raw_PG
            advantage_PG = hooked("dra.advantages", self.advantages(
                similarity=similarity_PGG.clone(), rewards=raw_PG.clone(), correct=correct_PG.clone(),
                advantages=group_advantages(raw_PG, self.scale), scale=self.scale, texts=texts, rows=rows,
                lengths=torch.tensor(lengths).view_as(raw_PG), logprobs=torch.tensor(logprobs).view_as(raw_PG)), raw_PG)
        seconds = {"grade_s": graded - start, "embed_s": embedded - graded, "dra_s": time.perf_counter() - embedded}
        return Scores(grades, correct_PG, parts, raw_PG, similarity_P, cut, smi_PG, weight_PG, adjusted_PG,
                      advantage_PG, seconds)

    def values(self, name: str, turns: list[str], rows_N: list[dict], grades: list[Grade],
               lengths: list[int]) -> Tensor:
        """(N,) values of one reward function, before its weight; nan for None. ValueError for what is no number."""
        function, _ = self.functions[name]
        what = f"reward function {name!r}"
        values = per_completion(what, function(
            texts=turns, golds=[row.get("answer") for row in rows_N], rows=rows_N, grades=grades, lengths=lengths,
            max_new_tokens=self.max_new_tokens), len(turns))
        for i, value in enumerate(values):
            if value is not None and not (isinstance(value, Real) and abs(value) <= torch.finfo(torch.float32).max):
                raise ValueError(f"{what} returned {repr(value)[:80]} for completion {i}; expected one finite number, "
                                 "or None where it does not apply")
        return torch.tensor([math.nan if value is None else float(value) for value in values])

    def total(self, parts_PG: dict[str, Tensor]) -> Tensor:
        """(P, G) weighted sums; ValueError where all functions returned None, or the sum is not finite."""
        if torch.stack([part_PG.isnan() for part_PG in parts_PG.values()]).all(0).any():
            raise ValueError(f"reward functions {', '.join(map(repr, parts_PG))}: a completion got None from all of "
                             "them; at least one must return a number")
        raw_PG = sum(weight * parts_PG[name].nan_to_num() for name, (_, weight) in self.functions.items())
        require_finite(raw_PG, "rewards")
        return raw_PG


def main() -> None:
    """Eight completions of one prompt: six clones, one wrong answer, one unique right answer."""
    angle = torch.tensor([0.00, 0.05, 0.10, 0.15, 0.20, 0.25, 1.2, 1.3])
    angle[7] *= -1
    rewards = torch.tensor([1.0] * 6 + [0.0, 1.0])
    similarity = cosine_similarity(torch.stack((angle.cos(), angle.sin()), -1))
    adjusted = adjust_rewards(rewards, similarity)
    columns = (rewards, group_advantages(rewards), graph_cut_smi(similarity.clamp(min=0)), adjusted,
               group_advantages(adjusted))
    print("completion    reward  advantage |    SMI  adjusted  advantage (DRA-GRPO)")
    for i, values in enumerate(zip(*(column.tolist() for column in columns))):
        kind = "clone" if i < 6 else ("wrong", "unique")[i - 6]
        print("{} {:<10}{:>8.3f}{:>11.3f} |{:>7.3f}{:>10.3f}{:>11.3f}".format(i + 1, kind, *values))


if __name__ == "__main__":
    main()
