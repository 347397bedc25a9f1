"""The gradient: rows with advantages in, one or more optimizer steps out.

    figures = Learner(model, config, folder, device, n_tokens, temperature, max_new_tokens).update(rows, lr)

The objective (arXiv:2402.03300, eq. 3) is

    sum_it w_it [ min(rho_it A_i, clip(rho_it, 1 - clip_low, 1 + clip_high) A_i) - beta (exp(r_it) - r_it - 1) ]

with rho the probability ratio to the policy that sampled, r = log(reference / policy), and w the weight of a token:
GRPO (mean over a completion, then over completions), Dr. GRPO (sum / (N max_new_tokens), arXiv:2503.20783) and DAPO
(sum / tokens, arXiv:2503.14476) differ in w alone. Weights come from counts over all ranks before the first backward,
so an update does not depend on ranks, micro-batches or the order of rows.

A micro-batch is a stream (stream.py): the prompts in it, each once, and their completions, one after the other without
padding. A prompt is computed once for all its completions, which together are often shorter than its copies would be.
Without a reference, a completion whose advantage is 0 adds nothing to the gradient, so it is counted and not computed.

Departures from the papers: (1) without a second update per rollout the ratio is 1 and nothing is clipped; (2) the
temperature is inside every log-prob; (3) the learning rate warms up from lr / warm-up steps, not from 0, so no step is
lost.
"""
import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, isfinite, pi
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from model import DTYPES, ModelConfig, Transformer
from ranks import full_weights, gather_over_ranks, max_over_ranks, shard, sum_over_ranks
from sampler import Completion
from stream import Stream

# P prompts, G completions each, N rows, T tokens of a row, M sampled tokens of a micro-batch


@dataclass(frozen=True)
class LearnerConfig:
    loss: Literal["grpo", "dr_grpo", "dapo"] = "grpo"
    """how tokens are weighted: mean per completion, constant length, or mean over all tokens"""
    clip_low: Annotated[float, ">= 0", "< 1"] = 0.2
    """the probability ratio is clipped at 1 - clip_low"""
    clip_high: Annotated[float, ">= 0", "< 1"] = 0.2
    """the probability ratio is clipped at 1 + clip_high"""
    mask_truncated: bool = False
    """completions cut at max_new_tokens stay out of the loss and of its denominators (not out of their group's mean)"""
    drop_equal_groups: bool = False
    """groups whose raw rewards are all equal stay out of the loss and its denominators; DRA acts most on them"""
    kl_beta: Annotated[float, ">= 0"] = 0.0
    """weight of the KL penalty (k3) to the frozen initial policy; 0 loads no reference"""
    updates_per_rollout: Annotated[int, ">= 1"] = 1
    """optimizer steps on each step's completions"""
    micro_batch_tokens: Annotated[int, ">= 1"] = 16384
    """distinct tokens of a micro-batch on one rank: each prompt once, and its completions"""
    offload: Annotated[bool, "free"] = False
    """master weights, gradients and moments in host memory; the GPU holds one block at a time (slow, for small GPUs)"""
    lr: Annotated[float, ">= 0"] = 1e-6
    """peak learning rate of AdamW"""
    schedule: Literal["constant", "cosine"] = "cosine"
    """learning rate after the warm-up"""
    warmup: Annotated[float, ">= 0", "< 1"] = 0.1
    """share of the steps over which the rate rises linearly"""
    floor: Annotated[float, ">= 0", "<= 1"] = 0.1
    """share of lr at which the cosine ends"""
    weight_decay: Annotated[float, ">= 0"] = 0.0
    """AdamW's decoupled weight decay, on matrices only"""
    max_grad_norm: Annotated[float, "> 0"] = 1.0
    """the gradient is scaled down to this norm"""


class Row(NamedTuple):
    """One completion that the loss sums over."""
    prompt: list[int]
    completion: Completion
    advantage: float


class Batch(NamedTuple):
    """A micro-batch on the learner's device; M tokens were sampled."""
    stream: Stream
    sampled_M: Tensor                                   # the sampler's log-probs
    advantage_M: Tensor
    weights_M: Tensor                                   # see `token_weights`


# ------------------------------------------------------------------------------------------------ pure functions


def pack(sizes: Sequence[int], room: int) -> list[list[int]]:
    """Indices of `sizes` in bins that hold at most `room`: the largest first, each in the first bin where it fits.

    One that is larger than `room` has a bin of its own.
    """
    bins: list[list[int]] = []
    left: list[int] = []
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        place = next((place for place, free in enumerate(left) if sizes[i] <= free), len(bins))
        if place == len(bins):
            bins.append([])
            left.append(room)
        bins[place].append(i)
        left[place] -= sizes[i]
    return bins


def micro_batches(rows: Sequence[Row], budget: int) -> list[list[list[Row]]]:
    """Micro-batches of groups of rows with one prompt, within `budget` distinct tokens.

    The completions of a prompt stay together, unless they are too many: then each part of them repeats the prompt. A
    completion that exceeds the budget with its prompt alone is a micro-batch of its own.
    """
    groups: dict[tuple[int, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row.prompt), []).append(row)
    parts = [[group[i] for i in part] for prompt, group in groups.items()
             for part in pack([len(row.completion.tokens) - 1 for row in group], max(0, budget - len(prompt)))]
    sizes = [len(part[0].prompt) + sum(len(row.completion.tokens) - 1 for row in part) for part in parts]
    return [[parts[i] for i in batch] for batch in pack(sizes, budget)]


def rows_in_loss(completions: Sequence[Completion], rewards_PG: Tensor, config: LearnerConfig) -> list[int]:
    """Indices of the rows that the loss sums over and its denominators count; `rewards_PG` are those before DRA."""
    equal_P = (rewards_PG == rewards_PG[:, :1]).all(-1).tolist()
    G = rewards_PG.shape[1]
    return [i for i, completion in enumerate(completions)
            if not (config.mask_truncated and completion.finish == "length")
            and not (config.drop_equal_groups and equal_P[i // G])]


def token_weights(mask_NT: Tensor, loss: str, *, rows: int, tokens: int, max_new_tokens: int) -> Tensor:
    """Weight of each token in the step's loss; `rows` and `tokens` are totals over all micro-batches and ranks.

    Copy-pasteable: needs only torch.
    """
    match loss:
        case "grpo":                                    # mean over a completion, then over completions
            return mask_NT / mask_NT.sum(-1, keepdim=True).clamp(min=1) / rows
        case "dr_grpo":                                 # a constant for the length: long completions are not discounted
            return mask_NT / (rows * max_new_tokens)
        case "dapo":                                    # every token of the step counts the same
            return mask_NT / max(tokens, 1)
    raise ValueError(f"learner.loss must be grpo, dr_grpo or dapo; got {loss!r}")


def policy_loss(logp_NT: Tensor, old_logp_NT: Tensor, advantage_N: Tensor, clip_low: float, clip_high: float) -> Tensor:
    """Clipped surrogate per token, -min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A), (N, T).

    rho = exp(logp - old_logp); the caller multiplies by `token_weights` and sums. Works for a stream too: tokens (M,)
    with an advantage each (M,). Copy-pasteable: needs only torch.
    """
    ratio_NT = (logp_NT - old_logp_NT).exp()
    advantage_N1 = advantage_N.view(-1, *[1] * (logp_NT.ndim - 1))
    return -torch.minimum(ratio_NT * advantage_N1, ratio_NT.clamp(1 - clip_low, 1 + clip_high) * advantage_N1)


def kl_k3(logp_NT: Tensor, ref_logp_NT: Tensor) -> Tensor:
    """Schulman's k3 estimate of KL(policy || reference) per token: exp(r) - r - 1 with r = ref_logp - logp.

    At least 0, in nats. Unbiased as a value for tokens drawn from the policy; its gradient is not that of the KL.
    Copy-pasteable: needs only torch.
    """
    r_NT = ref_logp_NT - logp_NT
    return r_NT.exp() - r_NT - 1


def lr_at(step: int, config: LearnerConfig, steps: int) -> float:
    """Learning rate of step 0..steps-1: linear warm-up to config.lr, then constant or a cosine down to floor * lr."""
    warm = round(config.warmup * steps)
    if step < warm:
        return config.lr * (step + 1) / warm                                                   # (3)
    if config.schedule == "constant":
        return config.lr
    progress = (step - warm) / max(1, steps - 1 - warm)
    return config.lr * (config.floor + (1 - config.floor) * 0.5 * (1 + cos(pi * progress)))


# ------------------------------------------------------------------------------------------------ the learner


class Clock:
    """Seconds by part of a step; waits for a GPU at every border, so that work counts where it was asked for."""

    def __init__(self, device: torch.device):
        self.device, self.seconds = device, {}
        self.start = self.last = time.perf_counter()

    def lap(self, part: str) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self.last
        self.last = now


@dataclass
class Sums:
    """What an update adds up over this rank's micro-batches; each sum is divided once, by the counts of all ranks."""
    loss: float = 0.0
    kl: float = 0.0
    clipped: float = 0.0
    gap: float = 0.0
    gap_max: float = 0.0

    @torch.no_grad()
    def add(self, loss: Tensor, logp_M: Tensor, old_M: Tensor, kl_M: Tensor, config: LearnerConfig) -> None:
        ratio_M = (logp_M - old_M).exp()
        self.loss += loss.item()
        self.kl += kl_M.sum().item()
        self.clipped += ((ratio_M < 1 - config.clip_low) | (ratio_M > 1 + config.clip_high)).sum().item()

    @torch.no_grad()
    def add_gap(self, logp_M: Tensor, sampled_M: Tensor) -> None:
        gap_M = (logp_M - sampled_M).abs()
        self.gap += gap_M.sum().item()
        self.gap_max = max(self.gap_max, *gap_M.tolist(), 0.0)

    def figures(self, tokens: int, updates: int) -> dict[str, float]:
        """The loss per update and means over the `tokens` of all ranks; collective."""
        loss, kl, clipped, gap = sum_over_ranks([self.loss, self.kl, self.clipped, self.gap])
        tokens = max(tokens, 1)
        return {"loss": loss / updates, "kl": kl / tokens / updates, "clipped": clipped / tokens / updates,
                "gap": gap / tokens, "gap_max": max_over_ranks(self.gap_max)}


class Learner:
    """Policy, optimizer and (when kl_beta > 0) frozen reference of one rank."""

    def __init__(self, model: ModelConfig, config: LearnerConfig, folder: str, device: torch.device, n_tokens: int,
                 temperature: float, max_new_tokens: int, weights_from: str | Path | None = None):
        """`n_tokens`: ids of the vocabulary that are not padding. `weights_from`: the policy folder of a checkpoint;
        the reference always starts from `folder`.
        """
        dtype = DTYPES[model.dtype]
        self.config, self.device, self.temperature, self.max_new_tokens = config, device, temperature, max_new_tokens

        def build(path: str | Path) -> Transformer:
            built = Transformer.from_pretrained(path, torch.promote_types(dtype, torch.float32), device)
            built.n_tokens, built.compute_dtype = n_tokens, dtype
            built.checkpoint_activations = model.activation_checkpointing
            return shard(built, dtype, config.offload)

        self.policy = build(weights_from or folder)
        self.reference = build(folder).requires_grad_(False) if config.kl_beta > 0 else None
        matrices = [p for p in self.policy.parameters() if p.ndim >= 2]
        vectors = [p for p in self.policy.parameters() if p.ndim < 2]
        self.optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": config.weight_decay},
                                            {"params": vectors, "weight_decay": 0.0}], fused=True)
        self.updates = 0

    def optimizer_state(self) -> dict[str, Tensor]:
        """The moments under "moment.parameter" names; zeros before the first update."""
        state = {}
        for name, parameter in self.policy.named_parameters():
            moments = self.optimizer.state[parameter]
            if not moments:                             # fused AdamW reads its step where the parameter is
                moments |= {"step": torch.zeros((), device=parameter.device),
                            "exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}
            state |= {f"{key}.{name}": moments[key] for key in ("exp_avg", "exp_avg_sq")}
        return state

    def set_updates(self, updates: int) -> None:
        """Tells the optimizer how many updates its moments have seen (after they were loaded)."""
        self.updates = updates
        for moments in self.optimizer.state.values():
            moments["step"] = torch.tensor(float(updates), device=moments["step"].device)

    def save_policy(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        """Writes the policy as a Hugging Face folder from the first rank; collective, because gathering is."""
        first = not dist.is_initialized() or dist.get_rank() == 0
        weights = {}
        for name, tensor in full_weights(self.policy):  # gathered on all ranks, held by one: 7 GB for a 1.5B policy
            if first:
                weights[name] = tensor.cpu()
        if first:
            self.policy.save_pretrained(folder, weights, dtype)

    def update(self, rows: Sequence[Row], lr: float) -> dict[str, float]:
        """`updates_per_rollout` optimizer steps on this rank's rows; returns figures, and seconds as "..._s".

        Collective: every rank calls it, with any number of rows, and runs the same number of micro-batches. Raises
        FloatingPointError on all ranks, leaving the weights alone, if the loss or the gradient is not finite on any.
        """
        config, policy, clock, sums = self.config, self.policy, Clock(self.device), Sums()
        passed = [row for row in rows if self.reference or row.advantage != 0]
        total_rows, passed_rows, tokens, passed_tokens, entropy, measured = sum_over_ranks(
            [len(rows), len(passed), *(sum(len(row.completion.tokens) for row in some) for some in (rows, passed)),
             *(sum(of(row.completion.entropies or []) for row in rows) for of in (sum, len))])
        batches = [self.batch(part, total_rows, tokens) for part in micro_batches(passed, config.micro_batch_tokens)]
        # FSDP2 needs the same number of passes on every rank, at least one: those added are empty
        passes = max(1, int(max_over_ranks(len(batches))))
        batches += [self.batch([], total_rows, tokens)] * (passes - len(batches))
        world = dist.get_world_size() if dist.is_initialized() else 1

        references, olds = [self.reference_logprobs(batch) for batch in batches], []
        clock.lap("logprob_s")
        for update in range(config.updates_per_rollout):
            for i, (batch, reference_M) in enumerate(zip(batches, references)):
                logp_M = policy.stream_logprobs(batch.stream, self.temperature)                                # (2)
                if update == 0:                         # the policy that sampled, but for rounding
                    olds.append(logp_M.detach())                                                               # (1)
                    sums.add_gap(logp_M, batch.sampled_M)
                loss_M = policy_loss(logp_M, olds[i], batch.advantage_M, config.clip_low, config.clip_high)
                kl_M = torch.zeros_like(logp_M) if reference_M is None else kl_k3(logp_M, reference_M)
                loss = (batch.weights_M * (loss_M + config.kl_beta * kl_M)).sum()
                sums.add(loss, logp_M, olds[i], kl_M, config)
                clock.lap("forward_s")
                (loss * world).backward()               # FSDP2 averages over ranks; the weights count all ranks' rows
                clock.lap("backward_s")
            grad_norm = self.optimizer_step(lr, sums.loss)
            clock.lap("optimizer_s")
        figures = sums.figures(passed_tokens, config.updates_per_rollout)
        kl = None if self.reference is None else figures["kl"]
        return {**figures, "kl": kl, "entropy": entropy / measured if measured else None, "grad_norm": grad_norm,
                "lr": lr, "rows": int(total_rows), "passed_rows": int(passed_rows), **clock.seconds}

    @torch.no_grad()
    def reference_logprobs(self, batch: Batch) -> Tensor | None:
        """(M,) log-probs of a micro-batch under the reference; None without one."""
        return self.reference.stream_logprobs(batch.stream, self.temperature) if self.reference else None

    def optimizer_step(self, lr: float, loss: float) -> float:
        """One AdamW step on the clipped gradient; returns its norm before clipping.

        `loss` is this rank's. FloatingPointError on all ranks, before the step, if any rank's or norm is not finite.
        """
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.policy.parameters()])
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        total = sum_over_ranks([loss])[0]
        if not (isfinite(total) and torch.isfinite(norm)):
            ranks = [str(rank) for rank, loss in enumerate(gather_over_ranks([loss])) if not isfinite(loss)]
            raise FloatingPointError(f"loss {total} or gradient norm {norm.item()} is not finite"
                                     + (f" (loss of rank {', '.join(ranks)})" if ranks else ""))
        torch.nn.utils.clip_grads_with_norm_(self.policy.parameters(), self.config.max_grad_norm, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.updates += 1
        return norm.item()

    def batch(self, groups: Sequence[Sequence[Row]], total_rows: int, total_tokens: int) -> Batch:
        """One micro-batch of groups of rows with one prompt. Lengths say what was sampled, never token values: the stop
        token is trained, and pad may equal it.
        """
        rows = [row for group in groups for row in group]
        stream = Stream([(group[0].prompt, [row.completion.tokens for row in group]) for group in groups], self.device)
        dtype = torch.promote_types(self.policy.norm.weight.dtype, torch.float32)
        counted = [torch.ones(len(row.completion.tokens), dtype=dtype) for row in rows]
        columns = ([torch.tensor(row.completion.logprobs, dtype=dtype) for row in rows],
                   [row.advantage * ones for row, ones in zip(rows, counted)],
                   [token_weights(ones, self.config.loss, rows=total_rows, tokens=total_tokens,
                                  max_new_tokens=self.max_new_tokens) for ones in counted])
        empty = torch.zeros(0, dtype=dtype)             # of a pass without groups
        return Batch(stream, *(torch.cat([empty, *column]).to(self.device) for column in columns))
