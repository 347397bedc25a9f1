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
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model import Transformer, causal_attention, product_dtype

varlen_attn = None
if torch.cuda.is_available():                           # only cards have the kernel, and its import is a fifth of a start
    from torch.nn.attention.varlen import varlen_attn

# P prompts, G completions each, R = P*G rows, S slots, n live rows, T tokens, L layers, H query heads, K key/value heads, D head size, V vocabulary


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


LOOK_EVERY = 8                                          # steps between two looks of the host at what a GPU has finished
COLUMNS = 64                                            # tokens by which the cache grows on a CPU
ONE_THREAD_BELOW = 2**24                                # rows x parameters of a block: for less, waking other threads costs more than they save


def row_bucket(live: int, multiple: int) -> int:
    """Rows that are computed for `live` ones: a GPU captures a graph, and a CPU's oneDNN keeps a kernel, for each number of rows."""
    return next((rows for rows in (1, 2, 4) if rows >= live), -(-live // multiple) * multiple)


def has_varlen(x: Tensor) -> bool:
    """Whether torch's ragged attention kernel can take tensors like `x` (CUDA in half precision, torch >= 2.11)."""
    return x.is_cuda and x.dtype in (torch.bfloat16, torch.float16)


def decode_attention(q_nHD: Tensor, keys_STKD: Tensor, values_STKD: Tensor, used_n: Tensor, bias_nT: Tensor | None) -> Tensor:
    """One query per row over the first `used_n` tokens of its slot (rows 0..n-1 of the cache): (n, H, D).

    The ragged kernel reads live tokens only. Elsewhere `bias_nT` (0 or -inf, T at most the cache's) masks the rest, and the query
    heads that share a key/value head are folded into its query length, so K and V are neither expanded nor copied.
    """
    n, H, D = q_nHD.shape
    S, T, K, _ = keys_STKD.shape
    if bias_nT is None:
        slots = torch.arange(n + 1, dtype=torch.int32, device=q_nHD.device)
        return varlen_attn(q_nHD, keys_STKD.view(S * T, K, D), values_STKD.view(S * T, K, D), slots, slots * T, 1, T, enable_gqa=H != K,
                           seqused_k=used_n.int())
    keys, values = (x[:n, : bias_nT.shape[1]].transpose(1, 2) for x in (keys_STKD, values_STKD))
    return F.scaled_dot_product_attention(q_nHD.view(n, K, H // K, D), keys, values, bias_nT[:, None, None]).reshape(n, H, D)


class Cache:
    """Keys and values of the live rows, for each layer (S, T, K, D) twice, and what each row may attend to.

    On a CPU the capacity in tokens grows by COLUMNS at a time, one layer after the other, so memory follows the rows that still run;
    on CUDA it is reserved at once, because a captured graph keeps its addresses.
    """

    def __init__(self, model: Transformer, slots: int, tokens: int):
        g, weight = model.g, model.norm.weight
        self.slots, self.tokens = 0, 0
        dtype = product_dtype(weight)
        self.layers = [[weight.new_empty(0, 0, g.kv_heads, g.head_dim, dtype=dtype) for _ in ("keys", "values")] for _ in range(g.layers)]
        self.varlen = has_varlen(weight)
        self.bias_ST = weight.new_empty(0, 0, dtype=dtype)      # 0 where a row may look, -inf elsewhere
        if weight.is_cuda:
            self.reserve(0, slots, tokens)

    def reserve(self, live: int, slots: int, tokens: int) -> None:
        """Makes room for `slots` rows of `tokens` tokens, keeping the first `live` rows; cleared, because 0 times a stale nan is nan."""
        if tokens <= self.tokens and slots <= self.slots:
            return
        columns = max(self.tokens, -(-tokens // COLUMNS) * COLUMNS)

        def kept(old: Tensor, new: Tensor) -> Tensor:
            new[:live, : old.shape[1]] = old[:live]
            return new

        for layer in self.layers:
            for i, old in enumerate(layer):
                K, D = old.shape[2:]
                # in memory (S, T, K, D) for the ragged kernel, (S, K, T, D) for the other, which reads a head's tokens one after the other
                layer[i] = kept(old, old.new_zeros(slots, columns, K, D) if self.varlen else old.new_zeros(slots, K, columns, D).transpose(1, 2))
                del old
        self.bias_ST = kept(self.bias_ST, self.bias_ST.new_full((slots, columns), float("-inf")))
        self.slots, self.tokens = slots, columns

    def begin_step(self, pos_n: Tensor, longest: int) -> None:
        """Rows 0..n-1 decode one token each at positions `pos_n`; `longest` is the largest of them plus one."""
        n = len(pos_n)
        self.used_n = pos_n + 1
        self.write_at = torch.arange(n, device=pos_n.device), pos_n
        self.bias_ST[self.write_at] = 0.0
        self.bias_nT = None if self.varlen else self.bias_ST[:n, :longest]

    def attend(self, layer: int, q_n1HD: Tensor, k_n1KD: Tensor, v_n1KD: Tensor) -> Tensor:
        """Writes this step's keys and values at each row's position and attends to everything up to it."""
        keys, values = self.layers[layer]
        q_nHD, k_nKD, v_nKD = (x[:, 0].to(keys.dtype) for x in (q_n1HD, k_n1KD, v_n1KD))
        keys[self.write_at], values[self.write_at] = k_nKD, v_nKD
        return decode_attention(q_nHD, keys, values, self.used_n, self.bias_nT)[:, None].to(q_n1HD.dtype)

    def admit(self, slots: slice, prompt_kv: Tensor, length: int) -> None:
        """Copies one prompt's keys and values (2, L, T, K, D) to the slots and clears the rest of them."""
        for layer, kv in zip(self.layers, prompt_kv.unbind(1)):
            for cache, prompt in zip(layer, kv):
                cache[slots, :length] = prompt
                cache[slots, length:] = 0
        self.bias_ST[slots, :length] = 0
        self.bias_ST[slots, length:] = float("-inf")

    def move(self, to: Tensor, source: Tensor) -> None:
        """Rows `source` take the slots `to`."""
        for layer in self.layers:
            for cache in layer:
                cache[to] = cache[source]
        self.bias_ST[to] = self.bias_ST[source]


class Sampler:
    """Samples from its own compute-dtype copy of the policy; `load_weights` refreshes the copy after an optimizer step."""

    def __init__(self, model: Transformer, config: SamplerConfig, stop_ids: Sequence[int], top_p: float = 1.0):
        """`top_p` < 1 cuts the tail of the distribution; like temperature 0 (greedy) it is for evaluation, not for rollouts."""
        self.model, self.config, self.top_p = model.eval(), config, top_p
        self.device = model.norm.weight.device
        if beyond := [i for i in stop_ids if not 0 <= i < model.g.vocab]:
            raise ValueError(f"the end of a text is token {beyond[0]}, and the model has {model.g.vocab} of them: it could never end one; is this the model's own tokenizer?")
        self.is_stop = torch.zeros(model.g.vocab, dtype=torch.bool, device=self.device)
        self.is_stop[list(stop_ids)] = True
        self.look_every, self.rows_multiple = (LOOK_EVERY, 8) if self.device.type == "cuda" else (1, 4)
        self.model.pack()

    def load_weights(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Copies (our parameter name, full tensor) pairs into the sampler's model; every parameter must come exactly once."""
        parameters = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, tensor in tensors:
                parameters.pop(name).copy_(tensor)
        assert not parameters, f"sampler weights not refreshed: {list(parameters)}"
        self.model.pack()

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
                raise ValueError(f"prompt {i} has {len(prompt)} tokens; with max_new_tokens = {max_new} it exceeds the model's "
                                 f"context of {context}")
        if not prompts:
            return []
        positions = range(len(prompts)) if positions is None else positions
        flat = Rollout(self, prompts, group_size, [(*seed, position, g) for position in positions for g in range(group_size)]).run()
        return [flat[p * group_size : (p + 1) * group_size] for p in range(len(prompts))]


class Rollout:
    """The state of one `generate` call: which row sits in which slot, and what each has drawn. Row p * G + g is completion g of prompt p."""

    def __init__(self, sampler: Sampler, prompts: Sequence[list[int]], group_size: int, seeds: list[tuple[int, ...]]):
        self.sampler, self.model, self.prompts, self.G = sampler, sampler.model, prompts, group_size
        self.device, max_new, rows = sampler.device, sampler.config.max_new_tokens, len(seeds)
        self.slots = row_bucket(min(sampler.config.slots or rows, rows), sampler.rows_multiple)
        self.cache = Cache(self.model, self.slots, max(map(len, prompts)) + max_new)
        # column max_new takes what a finished row draws until the host looks
        self.uniform_RT = torch.from_numpy(np.stack([np.random.default_rng(seed).random(max_new) for seed in seeds])).to(self.device)
        self.uniform_RT = F.pad(self.uniform_RT, (0, 1))
        self.tokens_RT = torch.zeros(rows, max_new + 1, dtype=torch.long, device=self.device)
        self.logprobs_RT = torch.zeros(rows, max_new + 1, device=self.device)
        self.limit_R = torch.full((rows,), max_new, device=self.device)
        # of each slot: the row in it, the position it writes next, how many tokens it has drawn, the last of them, and whether it runs
        self.state_5S = torch.zeros(5, self.slots, dtype=torch.long, device=self.device)
        self.live = 0                                   # slots 0..live-1 are occupied
        self.longest = 0                                # upper bound on their positions
        self.waiting = 0                                # rows from here on have not been admitted yet
        self.lengths = [0] * rows
        self.prompt_kv: dict[int, tuple[Tensor, Tensor]] = {}   # prompts whose group is only partly admitted: (keys and values, logits)
        self.graphs: dict[int, torch.cuda.CUDAGraph] = {}       # a captured step per row bucket
        self.threads, self.block_size = torch.get_num_threads(), sum(p.numel() for p in self.model.blocks[0].parameters())

    def run(self) -> list[Completion]:
        try:
            self.sample()
        finally:
            torch.set_num_threads(self.threads)
        tokens, logprobs = self.tokens_RT.tolist(), self.logprobs_RT.tolist()
        stopped = self.sampler.is_stop[self.tokens_RT].tolist()
        return [Completion(tokens[row][:n], logprobs[row][:n], "stop" if stopped[row][n - 1] else "length") for row, n in enumerate(self.lengths)]

    def sample(self) -> None:
        rows = len(self.lengths)
        while self.live or self.waiting < rows:
            free, left = self.slots - self.live, rows - self.waiting
            if left and free >= min(max(1, self.slots // 8), left):         # refill an eighth at a time: a prefill interrupts everybody
                self.admit(free)
            for _ in range(self.sampler.look_every):
                if self.live:
                    self.decode()
            self.leave()

    def decode(self) -> None:
        """One token for every live row; the dead ones that fill the bucket sit at position 0 of free slots and are ignored."""
        n = row_bucket(self.live, self.sampler.rows_multiple)
        self.longest += 1
        # when nobody is waiting, free slots need no room any more
        self.cache.reserve(self.live, self.slots if self.waiting < len(self.lengths) else n, self.longest)
        if self.device.type != "cuda":
            torch.set_num_threads(1 if n * self.block_size < ONE_THREAD_BELOW else self.threads)
            self.step(n)
            return
        if n not in self.graphs:
            self.graphs[n] = self.capture(n)
        self.graphs[n].replay()

    def step(self, n: int) -> None:
        """Decodes slots 0..n-1. On CUDA this is what a graph captures: no host value in it changes from step to step."""
        _, pos_n, _, last_n, _ = self.state_5S[:, :n]
        self.cache.begin_step(pos_n, self.cache.tokens if self.device.type == "cuda" else self.longest)
        hidden = self.model.hidden(last_n[:, None], pos_n[:, None], self.cache.attend)
        self.draw(self.model.next_logits(hidden[:, 0]), slice(0, n))

    def capture(self, n: int) -> torch.cuda.CUDAGraph:
        """The step for `n` rows as a CUDA graph; the state is put back, since the warm-up runs the step for real."""
        kept = self.state_5S.clone()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self.step(n)
        torch.cuda.current_stream().wait_stream(stream)
        self.state_5S.copy_(kept)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.step(n)
        return graph

    def admit(self, free: int) -> None:
        """Prefills the prompts of the next `free` waiting rows, copies their keys and values, and draws the first tokens."""
        end = min(self.waiting + free, len(self.lengths))
        wanted = range(self.waiting // self.G, (end - 1) // self.G + 1)
        self.prefill([p for p in wanted if p not in self.prompt_kv])
        first, logits = self.live, []
        self.longest = max(self.longest, *(len(self.prompts[p]) for p in wanted), 0)
        self.cache.reserve(self.live, self.slots, self.longest)
        for p in wanted:
            rows = range(max(self.waiting, p * self.G), min(end, (p + 1) * self.G))
            kv, logits_1V = self.prompt_kv.pop(p) if rows.stop == (p + 1) * self.G else self.prompt_kv[p]
            slots = slice(self.live, self.live + len(rows))
            self.cache.admit(slots, kv, len(self.prompts[p]))
            self.state_5S[:, slots] = torch.tensor([[row, len(self.prompts[p]) - 1, 0, 0, 1] for row in rows], device=self.device).T
            logits.append(logits_1V.expand(len(rows), -1))
            self.live += len(rows)
        self.waiting = end
        self.draw(torch.cat(logits), slice(first, self.live))

    def prefill(self, prompts: list[int]) -> None:
        """One causal pass over right-padded prompts; keeps each one's keys and values and the logits of its first new token."""
        if not prompts:
            return
        lengths = [len(self.prompts[p]) for p in prompts]
        tokens_PT = torch.nn.utils.rnn.pad_sequence([torch.tensor(self.prompts[p]) for p in prompts], batch_first=True)
        keys_values: list[Tensor] = []

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys_values.append(torch.stack((k, v)))
            return causal_attention(layer, q, k, v)

        hidden = self.model.hidden(tokens_PT.to(self.device), attend=attend)
        logits = self.model.next_logits(hidden[torch.arange(len(prompts)), torch.tensor(lengths) - 1])
        for i, p in enumerate(prompts):
            self.prompt_kv[p] = torch.stack([kv[:, i, : lengths[i]] for kv in keys_values], dim=1), logits[i : i + 1]

    def draw(self, logits_nV: Tensor, slots: slice) -> None:
        """Draws one token for the rows in `slots` and records it; a row that has finished, or an empty slot, stands still."""
        row_n, pos_n, count_n, last_n, runs_n = self.state_5S[:, slots]
        tokens_n, logprobs_n = sample_tokens(logits_nV, self.uniform_RT[row_n, count_n], self.sampler.config.temperature, self.sampler.top_p)
        column_n = torch.where(runs_n > 0, count_n, self.tokens_RT.shape[1] - 1)
        self.tokens_RT[row_n, column_n] = tokens_n
        self.logprobs_RT[row_n, column_n] = logprobs_n.float()
        last_n.copy_(tokens_n)
        pos_n += runs_n
        count_n += runs_n
        runs_n *= ~(self.sampler.is_stop[tokens_n] | (count_n >= self.limit_R[row_n]))

    def leave(self) -> None:
        """Finished rows leave; the last live rows take their slots, so that live rows stay at 0..n-1."""
        gone = (self.state_5S[4, : self.live] == 0).nonzero().flatten().tolist()        # the one place where the host waits for the device
        if not gone:
            return
        for row, count in self.state_5S[:3:2, gone].T.tolist():
            self.lengths[row] = count
        n = self.live - len(gone)
        to = [slot for slot in gone if slot < n]
        if to:
            source = torch.tensor(sorted(set(range(n, self.live)) - set(gone)), device=self.device)
            to = torch.tensor(to, device=self.device)
            self.state_5S[:, to] = self.state_5S[:, source]
            self.cache.move(to, source)
        self.state_5S[:, n : self.live] = 0
        self.live = n
        self.longest = int(self.state_5S[1, :n].max()) if n else 0


def sample_tokens(logits_NV: Tensor, uniform_N: Tensor, temperature: float, top_p: float = 1.0) -> tuple[Tensor, Tensor]:
    """One token per row by inverse CDF of softmax(logits / temperature), and its log-prob under that full distribution.

    `uniform_N` in [0, 1), float64. Temperature 0 takes the largest logit and reports log-probs at temperature 1. `top_p` < 1 draws
    from the smallest set of most likely tokens whose mass reaches top_p (the crossing token stays); log-probs do not change.
    Returns ids (N,) and log-probs (N,), at least float32. Copy-pasteable with `top_p_logits`: needs only torch.
    """
    logits_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
    if temperature not in (0, 1):
        logits_NV = logits_NV / temperature
    peak_N1 = logits_NV.amax(-1, keepdim=True)
    cumulative_NV = (logits_NV - peak_N1).exp_().cumsum(-1, dtype=torch.float64)
    total_N = cumulative_NV[:, -1]
    if temperature == 0:
        tokens_N = logits_NV.argmax(-1)
    else:
        drawn_from_NV, mass_N = cumulative_NV, total_N
        if top_p < 1:
            drawn_from_NV = (top_p_logits(logits_NV, top_p) - peak_N1).exp_().cumsum(-1, dtype=torch.float64)
            mass_N = drawn_from_NV[:, -1]
        # u * mass may round up to mass, which would pick the last id even where its probability is 0
        threshold_N = torch.minimum(uniform_N * mass_N, mass_N.nextafter(torch.zeros_like(mass_N)))
        tokens_N = torch.searchsorted(drawn_from_NV, threshold_N[:, None], right=True).squeeze(-1)
        tokens_N = tokens_N.clamp(max=logits_NV.shape[-1] - 1)          # nan logits: some id with a nan log-prob, which the learner reports
    chosen_N = logits_NV.gather(-1, tokens_N[:, None]).squeeze(-1)
    return tokens_N, (chosen_N - peak_N1.squeeze(-1)) - total_N.log().to(logits_NV.dtype)


def top_p_logits(logits_NV: Tensor, top_p: float) -> Tensor:
    """Logits with everything outside the nucleus at -inf; the token that crosses `top_p` is inside."""
    ascending_NV, order_NV = logits_NV.sort(-1)
    outside_NV = ascending_NV.softmax(-1).cumsum(-1) <= 1 - top_p
    outside_NV[:, -1] = False
    return logits_NV.masked_fill(outside_NV.scatter(-1, order_NV, outside_NV), float("-inf"))
