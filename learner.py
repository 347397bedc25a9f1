"""The gradient: rows with advantages in, one or more optimizer steps out.

    figures = Learner(model, config, folder, device, n_tokens, temperature, max_new_tokens).update(rows, lr)

The objective (arXiv:2402.03300, eq. 3) is

    sum_it w_it [ min(rho_it A_i, clip(rho_it, 1 - clip_low, 1 + clip_high) A_i) - beta (exp(r_it) - r_it - 1) ]

with rho the probability ratio to the policy that sampled, r = log(reference / policy), and w the weight of a token:
GRPO (mean over a completion, then over completions), Dr. GRPO (sum / (N max_new_tokens), arXiv:2503.20783) and DAPO
(sum / tokens, arXiv:2503.14476) differ in w alone. Weights come from counts over all ranks before the first backward,
so an update does not depend on ranks, micro-batches or the order of rows.

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

# P prompts, G completions each, N rows of a micro-batch, T tokens of a row (prompt and completion, right-padded)


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
    """rows x longest row of a micro-batch on one rank"""
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

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.completion.tokens)


class Batch(NamedTuple):
    """A micro-batch on the learner's device, right-padded."""
    tokens_NT: Tensor
    mask_NT: Tensor                                     # True where a token was sampled
    sampled_NT: Tensor                                  # the sampler's log-probs
    advantage_N: Tensor
    weights_NT: Tensor                                  # see `token_weights`


# ------------------------------------------------------------------------------------------------ pure functions


PASS_TOKENS = 256                                       # a micro-batch costs as much as so many tokens of padding


def micro_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Row indices, longest first, cut as cheaply as possible with rows x longest row within `budget` tokens.

    The cost of a cut into micro-batches is the sum of rows x longest row + PASS_TOKENS, so padding is paid only where
    it saves passes. A row longer than the budget is a micro-batch of its own.
    """
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    cost, start_of = [0] * (len(order) + 1), [0] * (len(order) + 1)     # of the first n rows: least, last batch
    for end in range(1, len(order) + 1):
        options = []
        for start in reversed(range(end)):
            padded = (end - start) * lengths[order[start]]
            if padded > budget and end - start > 1:
                break
            options.append((cost[start] + padded + PASS_TOKENS, start))
        cost[end], start_of[end] = min(options)
    batches, end = [], len(order)
    while end:
        batches.append(order[start_of[end] : end])
        end = start_of[end]
    return batches[::-1]


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

    rho = exp(logp - old_logp); the caller multiplies by `token_weights` and sums. Copy-pasteable: needs only torch.
    """
    ratio_NT = (logp_NT - old_logp_NT).exp()
    advantage_N1 = advantage_N[:, None]
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
    entropy: float = 0.0
    clipped: float = 0.0
    gap: float = 0.0
    gap_max: float = 0.0

    @torch.no_grad()
    def add(self, batch: Batch, loss: Tensor, logp_NT: Tensor, old_NT: Tensor, kl_NT: Tensor, entropy_NT: Tensor,
            config: LearnerConfig) -> None:
        ratio_NT = (logp_NT - old_NT).exp()
        self.loss += loss.item()
        self.kl += (kl_NT * batch.mask_NT).sum().item()
        self.entropy += entropy_NT.sum().item()
        clipped_NT = (ratio_NT < 1 - config.clip_low) | (ratio_NT > 1 + config.clip_high)
        self.clipped += (clipped_NT * batch.mask_NT).sum().item()

    @torch.no_grad()
    def add_gap(self, batch: Batch, logp_NT: Tensor) -> None:
        gap_NT = (logp_NT - batch.sampled_NT).abs() * batch.mask_NT
        self.gap += gap_NT.sum().item()
        self.gap_max = max(self.gap_max, gap_NT.max().item())

    def figures(self, tokens: int, updates: int) -> dict[str, float]:
        """The loss per update and means over the `tokens` of all ranks; collective."""
        loss, kl, entropy, clipped, gap = sum_over_ranks([self.loss, self.kl, self.entropy, self.clipped, self.gap])
        tokens = max(tokens, 1)
        return {"loss": loss / updates, "kl": kl / tokens / updates, "entropy": entropy / tokens / updates,
                "gap": gap / tokens, "clipped": clipped / tokens / updates, "gap_max": max_over_ranks(self.gap_max)}


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
            built.n_tokens, built.checkpoint_activations = n_tokens, model.activation_checkpointing
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
        total_rows, tokens = map(int, sum_over_ranks([len(rows), sum(len(row.completion.tokens) for row in rows)]))
        parts = micro_batches([row.length for row in rows], config.micro_batch_tokens)
        batches = [self.batch([rows[i] for i in part], total_rows, tokens) for part in parts]
        # FSDP2 needs the same number of passes on every rank, at least one: those added are two tokens without weight
        own, passes = len(batches), max(1, int(max_over_ranks(len(batches))))
        batches += [self.batch([Row([0], Completion([0], [0.0], "length"), 0.0)], 0, 0)] * (passes - own)
        world = dist.get_world_size() if dist.is_initialized() else 1

        references = [self.logprobs(self.reference, batch) for batch in batches]
        olds = [self.logprobs(policy if config.updates_per_rollout > 1 else None, batch) for batch in batches]
        clock.lap("logprob_s")
        for update in range(config.updates_per_rollout):
            for i, (batch, old_NT, reference_NT) in enumerate(zip(batches, olds, references)):
                logp_NT, entropy_NT = policy.token_logprobs(batch.tokens_NT, batch.mask_NT, self.temperature)  # (2)
                old_NT = logp_NT.detach() if old_NT is None else old_NT                                        # (1)
                loss_NT = policy_loss(logp_NT, old_NT, batch.advantage_N, config.clip_low, config.clip_high)
                kl_NT = torch.zeros_like(logp_NT) if reference_NT is None else kl_k3(logp_NT, reference_NT)
                loss = (batch.weights_NT * (loss_NT + config.kl_beta * kl_NT)).sum()
                if i < own:
                    sums.add(batch, loss, logp_NT, old_NT, kl_NT, entropy_NT, config)
                    if update == 0:                     # later updates differ from the sampler because the weights do
                        sums.add_gap(batch, logp_NT)
                clock.lap("forward_s")
                (loss * world).backward()               # FSDP2 averages over ranks; the weights count all ranks' rows
                clock.lap("backward_s")
            grad_norm = self.optimizer_step(lr, sums.loss)
            clock.lap("optimizer_s")
        figures = sums.figures(tokens, config.updates_per_rollout)
        kl = None if self.reference is None else figures["kl"]
        return {**figures, "kl": kl, "grad_norm": grad_norm, "lr": lr, "rows": total_rows, **clock.seconds}

    @torch.no_grad()
    def logprobs(self, model: Transformer | None, batch: Batch) -> Tensor | None:
        """(N, T) log-probs of a micro-batch under `model`; None without one."""
        return model.token_logprobs(batch.tokens_NT, batch.mask_NT, self.temperature)[0] if model else None

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

    def batch(self, rows: Sequence[Row], total_rows: int, total_tokens: int) -> Batch:
        """One micro-batch, without weight if the totals are 0.

        The mask comes from lengths, never from token values: the stop token is trained, and pad may equal it.
        """
        width = max(row.length for row in rows)
        tokens_NT = torch.zeros(len(rows), width, dtype=torch.long)
        mask_NT = torch.zeros(len(rows), width, dtype=torch.bool)
        dtype = torch.promote_types(self.policy.norm.weight.dtype, torch.float32)
        sampled_NT = torch.zeros(len(rows), width, dtype=dtype)
        for i, row in enumerate(rows):
            start, end = len(row.prompt), row.length
            tokens_NT[i, :end] = torch.tensor(row.prompt + row.completion.tokens)
            mask_NT[i, start:end] = True
            sampled_NT[i, start:end] = torch.tensor(row.completion.logprobs, dtype=dtype)
        counted_NT = mask_NT.to(dtype) if total_rows else torch.zeros_like(sampled_NT)
        weights_NT = token_weights(counted_NT, self.config.loss, rows=max(total_rows, 1), tokens=total_tokens,
                                   max_new_tokens=self.max_new_tokens)
        advantage_N = torch.tensor([row.advantage for row in rows], dtype=dtype)
        return Batch(*(x.to(self.device) for x in (tokens_NT, mask_NT, sampled_NT, advantage_N, weights_NT)))
