"""Prompts in, completions out: batched sampling over a static KV cache.

    sampler = Sampler(model, SamplerConfig(group_size=6), stop_ids=[0])
    groups = sampler.generate([[5, 6, 7], [8, 9]], group_size=6, seed=(run_seed, step))     # groups[p][g].tokens

Each prompt is prefilled once, right-padded, and its keys and values are copied to the G completions. Live rows always occupy
the slots 0..n-1: a row that finishes leaves at once, the last live row takes its place, and waiting rows fill the free slots.
So a step costs what its live rows cost, and nothing is padded to the longest completion.

Randomness is by row: the uniform numbers of a completion depend on (seed, prompt position, completion index, token index)
alone, so its tokens do not depend on slots, batch or ranks (in fp32, up to a draw that sits on a rounding boundary).
Tokens are drawn by inverse CDF from softmax(logits / temperature), and the log-prob returned is that of the token under this
full distribution. No rewards, no text, no top-k; top-p is for evaluation only.
"""
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from model import Transformer, causal_attention

# P prompts, G completions each, R = P*G rows, S slots, n live rows, T tokens, L layers, H query heads, K key/value heads, D head size


@dataclass(frozen=True)
class SamplerConfig:
    group_size: Annotated[int, ">= 2"] = 8
    """completions per prompt (G)"""
    max_new_tokens: Annotated[int, ">= 1"] = 1024
    """a completion is cut here (finish reason "length"); also the constant of the Dr. GRPO loss"""
    temperature: Annotated[float, "> 0"] = 1.0
    """softmax temperature of rollouts; inside every log-prob of sampler, learner and reference"""
    slots: Annotated[int, ">= 0"] = 0
    """rows decoded at a time, 0 for all of them; fewer slots need less memory and more steps"""


@dataclass(frozen=True)
class Completion:
    """What one row sampled; the stop token, if one was drawn, is the last of `tokens`."""
    tokens: list[int]
    logprobs: list[float]                               # of each token at the sampling temperature, in nats
    finish: str                                         # "stop" | "length"


class Cache:
    """Keys and values of the live rows, (2, L, S, K, T, D), and the position each row writes next."""

    def __init__(self, model: Transformer, slots: int, tokens: int):
        g, weight = model.g, model.norm.weight
        self.kv = torch.zeros(2, g.layers, slots, g.kv_heads, tokens, g.head_dim, dtype=weight.dtype, device=weight.device)
        self.pos = torch.zeros(slots, dtype=torch.long, device=weight.device)
        self.columns = torch.arange(tokens, device=weight.device)
        self.scale = g.head_dim**-0.5

    def begin_step(self, n: int, longest: int) -> None:
        """Rows 0..n-1 decode one token each; `longest` is their largest position plus one."""
        self.n, self.longest = n, longest
        self.rows = torch.arange(n, device=self.pos.device)
        self.heads = torch.arange(self.kv.shape[3], device=self.pos.device)
        hidden = self.columns[:longest] > self.pos[:n, None]
        self.bias = torch.zeros_like(hidden, dtype=self.kv.dtype).masked_fill_(hidden, float("-inf"))[:, None, :]

    def attend(self, layer: int, q_n1HD: Tensor, k_n1KD: Tensor, v_n1KD: Tensor) -> Tensor:
        """Writes this step's keys and values at each row's position and attends to everything up to it.

        The query heads that share a key/value head are folded into its query length, so K and V are never expanded.
        """
        n, _, H, D = q_n1HD.shape
        K = k_n1KD.shape[2]
        keys, values = self.kv[0, layer], self.kv[1, layer]
        at = (self.rows[:, None], self.heads, self.pos[:n, None])
        keys[at], values[at] = k_n1KD[:, 0], v_n1KD[:, 0]
        q = q_n1HD.reshape(n * K, H // K, D) * self.scale
        k, v = (x[:n, :, : self.longest].reshape(n * K, self.longest, D) for x in (keys, values))
        bias = self.bias.repeat_interleave(K, dim=0) if K > 1 else self.bias
        weights = torch.baddbmm(bias, q, k.transpose(1, 2)).softmax(-1)
        return torch.bmm(weights, v).view(n, 1, H, D)

    def admit(self, slots: list[int], prompt_kv: Tensor, source: list[int], lengths: list[int]) -> None:
        """Copies prompt keys and values (2, L, P, K, T, D), row `source[i]`, to slot `slots[i]`.

        The rest of the slot is cleared: a masked column weighs 0, but 0 times a nan left there would still be nan.
        """
        tokens = prompt_kv.shape[4]
        self.kv[:, :, slots, :, :tokens] = prompt_kv[:, :, source]
        self.kv[:, :, slots, :, tokens:] = 0
        self.pos[slots] = torch.tensor(lengths, device=self.pos.device)

    def move(self, to: list[int], source: list[int], longest: int) -> None:
        self.kv[:, :, to, :, :longest] = self.kv[:, :, source, :, :longest]
        self.pos[to] = self.pos[source]


class Sampler:
    """Samples from its own compute-dtype copy of the policy; `load_weights` refreshes the copy after an optimizer step."""

    def __init__(self, model: Transformer, config: SamplerConfig, stop_ids: Iterable[int], top_p: float = 1.0):
        """`top_p` < 1 cuts the tail of the distribution; like temperature 0 (greedy) it is for evaluation, not for rollouts."""
        self.model, self.config, self.top_p = model.eval(), config, top_p
        self.device = model.norm.weight.device
        self.is_stop = torch.zeros(model.g.vocab, dtype=torch.bool, device=self.device)
        self.is_stop[list(stop_ids)] = True

    def load_weights(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Copies (our parameter name, full tensor) pairs into the sampler's model; every parameter must come exactly once."""
        parameters = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, tensor in tensors:
                parameters.pop(name).copy_(tensor)
        assert not parameters, f"sampler weights not refreshed: {list(parameters)}"

    @torch.inference_mode()
    def generate(self, prompts: Sequence[list[int]], group_size: int, seed: Sequence[int], positions: Sequence[int] | None = None) -> list[list[Completion]]:
        """`group_size` completions of each prompt (token ids), in order.

        `positions` are the prompts' places in the step's global list (by default 0..P-1): with `seed` and the completion's
        index they fix its random numbers, so a prompt that occurs twice gets different completions.
        Raises ValueError, before anything is allocated, for an empty prompt or one that leaves no room in the context.
        """
        context, max_new = self.model.g.context, self.config.max_new_tokens
        for i, prompt in enumerate(prompts):
            if not prompt:
                raise ValueError(f"prompt {i} is empty: a completion needs at least one token to follow")
            if len(prompt) + max_new > context:
                raise ValueError(f"prompt {i} has {len(prompt)} tokens; with sampler.max_new_tokens = {max_new} it exceeds the "
                                 f"model's context of {context}")
        positions = range(len(prompts)) if positions is None else positions
        rows = [(p, g) for p in range(len(prompts)) for g in range(group_size)]
        if not rows:
            return []
        run = Rollout(self, prompts, rows, [(*seed, positions[p], g) for p, g in rows])
        while run.advance():
            pass
        flat = run.completions()
        return [flat[p * group_size : (p + 1) * group_size] for p in range(len(prompts))]


class Rollout:
    """The state of one `generate` call: which row sits in which slot, and what each has drawn."""

    def __init__(self, sampler: Sampler, prompts: Sequence[list[int]], rows: list[tuple[int, int]], seeds: list[tuple[int, ...]]):
        self.sampler, self.model, self.prompts, self.rows = sampler, sampler.model, prompts, rows
        device, max_new = sampler.device, sampler.config.max_new_tokens
        slots = min(sampler.config.slots or len(rows), len(rows))
        self.cache = Cache(self.model, slots, max(map(len, prompts)) + max_new)
        self.uniform_RT = torch.from_numpy(np.stack([np.random.default_rng(seed).random(max_new) for seed in seeds])).to(device)
        self.tokens_RT = torch.zeros(len(rows), max_new, dtype=torch.long, device=device)
        self.logprobs_RT = torch.zeros(len(rows), max_new, device=device)
        self.lengths = [0] * len(rows)
        self.stopped = [False] * len(rows)
        self.slot_rows: list[int] = []                  # row in each live slot
        self.waiting = 0                                # rows[waiting:] have not been admitted yet
        self.prompt_kv: dict[int, tuple[Tensor, Tensor]] = {}   # prompts whose group is only partly admitted: (keys and values, logits)

    def advance(self) -> bool:
        """Admits waiting rows when enough slots are free, then decodes one token of every live row; False when all are done."""
        slots = self.cache.pos.shape[0]
        free = slots - len(self.slot_rows)
        if self.waiting < len(self.rows) and free >= max(1, min(slots // 8, len(self.rows) - self.waiting)):
            self.admit(free)
        n = len(self.slot_rows)
        if n:
            rows = torch.tensor(self.slot_rows, device=self.sampler.device)
            counts = torch.tensor([self.lengths[row] for row in self.slot_rows], device=self.sampler.device)
            longest = max(len(self.prompts[self.rows[row][0]]) + self.lengths[row] for row in self.slot_rows)
            self.cache.begin_step(n, longest)
            last_n1 = self.tokens_RT[rows, counts - 1][:, None]
            hidden = self.model.hidden(last_n1, self.cache.pos[:n, None], self.cache.attend)
            self.cache.pos[:n] += 1
            self.draw(self.model.next_logits(hidden[:, 0]))
        return bool(self.slot_rows) or self.waiting < len(self.rows)

    def admit(self, free: int) -> None:
        """Prefills the prompts of the next `free` waiting rows, copies their keys and values, and draws the first tokens."""
        batch = range(self.waiting, min(self.waiting + free, len(self.rows)))
        wanted = dict.fromkeys(self.rows[row][0] for row in batch)
        self.prefill([p for p in wanted if p not in self.prompt_kv])
        first = len(self.slot_rows)
        by_prompt = {p: [row for row in batch if self.rows[row][0] == p] for p in wanted}
        logits, slot = [], first
        for p, rows in by_prompt.items():
            kv, logits_V = self.prompt_kv[p]
            self.cache.admit(list(range(slot, slot + len(rows))), kv, [0] * len(rows), [len(self.prompts[p])] * len(rows))
            logits.append(logits_V.expand(len(rows), -1))
            slot += len(rows)
        self.slot_rows += batch
        self.waiting = batch.stop
        still_needed = {self.rows[row][0] for row in range(batch.stop, min(batch.stop + 1, len(self.rows)))}
        self.prompt_kv = {p: kept for p, kept in self.prompt_kv.items() if p in still_needed}
        self.draw(torch.cat(logits), first)

    def prefill(self, prompts: list[int]) -> None:
        """One causal pass over right-padded prompts; keeps each one's keys and values and the logits of its first new token."""
        if not prompts:
            return
        lengths = [len(self.prompts[p]) for p in prompts]
        tokens = torch.zeros(len(prompts), max(lengths), dtype=torch.long)
        for i, p in enumerate(prompts):
            tokens[i, : lengths[i]] = torch.tensor(self.prompts[p])
        keys_values: list[Tensor] = []

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys_values.append(torch.stack((k, v)).transpose(2, 3))
            return causal_attention(layer, q, k, v)

        hidden = self.model.hidden(tokens.to(self.sampler.device), attend=attend)
        kv = torch.stack(keys_values, dim=1)            # (2, L, P, K, T, D)
        logits = self.model.next_logits(hidden[torch.arange(len(prompts)), torch.tensor(lengths) - 1])
        for i, p in enumerate(prompts):
            self.prompt_kv[p] = (kv[:, :, i : i + 1, :, : lengths[i]], logits[i : i + 1])

    def draw(self, logits_nV: Tensor, first: int = 0) -> None:
        """Draws one token for the rows in slots `first`.., records it, and lets finished rows leave."""
        live = self.slot_rows[first:]
        rows = torch.tensor(live, device=self.sampler.device)
        counts = torch.tensor([self.lengths[row] for row in live], device=self.sampler.device)
        tokens, logprobs = sample_tokens(logits_nV, self.uniform_RT[rows, counts], self.sampler.config.temperature, self.sampler.top_p)
        self.tokens_RT[rows, counts] = tokens
        self.logprobs_RT[rows, counts] = logprobs.float()
        stopped = self.sampler.is_stop[tokens].tolist()
        gone = []
        for i, row in enumerate(live):
            self.lengths[row] += 1
            self.stopped[row] = stopped[i]
            if stopped[i] or self.lengths[row] == self.tokens_RT.shape[1]:
                gone.append(first + i)
        self.leave(gone)

    def leave(self, gone: list[int]) -> None:
        """Fills the slots in `gone` (ascending) with the last live rows, so that live rows stay at 0..n-1."""
        n = len(self.slot_rows) - len(gone)
        source = [slot for slot in range(n, len(self.slot_rows)) if slot not in set(gone)]
        to = [slot for slot in gone if slot < n]
        if to:
            longest = max(len(self.prompts[self.rows[self.slot_rows[s]][0]]) + self.lengths[self.slot_rows[s]] for s in source)
            self.cache.move(to, source, min(longest, self.cache.kv.shape[4]))
        for a, b in zip(to, source):
            self.slot_rows[a] = self.slot_rows[b]
        del self.slot_rows[n:]

    def completions(self) -> list[Completion]:
        tokens, logprobs = self.tokens_RT.tolist(), self.logprobs_RT.tolist()
        return [
            Completion(tokens[row][:length], logprobs[row][:length], "stop" if self.stopped[row] else "length")
            for row, length in enumerate(self.lengths)
        ]


def sample_tokens(logits_NV: Tensor, uniform_N: Tensor, temperature: float, top_p: float = 1.0) -> tuple[Tensor, Tensor]:
    """One token per row by inverse CDF of softmax(logits / temperature), and its log-prob under that full distribution.

    `uniform_N` in [0, 1), float64. Temperature 0 takes the largest logit and reports log-probs at temperature 1. `top_p` < 1 draws
    from the smallest set of most likely tokens whose mass reaches top_p (the crossing token stays); log-probs do not change.
    Returns ids (N,) and log-probs (N,), at least float32. Copy-pasteable: needs only torch.
    """
    logits_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
    if temperature > 0:
        logits_NV = logits_NV / temperature
    log_z_N = logits_NV.logsumexp(-1)
    if temperature == 0:
        tokens_N = logits_NV.argmax(-1)
    else:
        kept_NV = top_p_logits(logits_NV, top_p) if top_p < 1 else logits_NV
        cumulative_NV = (kept_NV - kept_NV.amax(-1, keepdim=True)).exp().cumsum(-1, dtype=torch.float64)
        total_N = cumulative_NV[:, -1]
        # u * total may round up to total, which would pick the last id even where its probability is 0
        threshold_N = torch.minimum(uniform_N * total_N, total_N.nextafter(torch.zeros_like(total_N)))
        tokens_N = torch.searchsorted(cumulative_NV, threshold_N[:, None], right=True).squeeze(-1)
    return tokens_N, logits_NV.gather(-1, tokens_N[:, None]).squeeze(-1) - log_z_N


def top_p_logits(logits_NV: Tensor, top_p: float) -> Tensor:
    """Logits with everything outside the nucleus at -inf; the token that crosses `top_p` is inside."""
    ascending_NV, order_NV = logits_NV.sort(-1)
    outside_NV = ascending_NV.softmax(-1).cumsum(-1) <= 1 - top_p
    outside_NV[:, -1] = False
    return logits_NV.masked_fill(outside_NV.scatter(-1, order_NV, outside_NV), float("-inf"))


def stop_ids(generation_config: dict, tokenizer_eos: int | None) -> list[int]:
    """All ids that end a completion: generation_config's list (some models have several) united with the tokenizer's."""
    listed = generation_config.get("eos_token_id")
    listed = listed if isinstance(listed, list) else [listed]
    return sorted({i for i in [*listed, tokenizer_eos] if i is not None})
