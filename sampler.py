"""Prompts in, completions out: batched sampling over a static KV cache.

    sampler = Sampler(model, SamplerConfig(group_size=6), stop_ids=[0])
    groups = sampler.generate([[5, 6, 7], [8, 9]], group_size=6, seed=(run_seed, step))     # groups[p][g].tokens

Each prompt is prefilled once, right-padded, and its keys and values are copied to the G completions. Live rows always
occupy the slots 0..n-1: a row that finishes leaves at once, the last live row takes its place, and waiting rows fill
the free slots. So a step costs what its live rows cost, and nothing is padded to the longest completion.

Randomness is by row: the uniform numbers of a completion depend on (seed, prompt position, completion index, token
index) alone, so its tokens do not depend on slots, batch or ranks (in fp32, up to a draw that sits on a rounding
boundary). Tokens are drawn by inverse CDF from softmax(logits / temperature), and the log-prob returned is that of the
token under this full distribution. No rewards, no text, no top-k; top-p is for evaluation only.

On a GPU a decode step is a CUDA graph. A graph keeps the addresses that it was captured with, so everything that a step
reads or writes lives in one object, `Slots`, together with the graphs over it: whoever moves the one drops the other.
"""
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from model import Transformer, causal_attention, has_varlen, product_dtype

# P prompts, G completions each, S slots, n live rows, T tokens, W tokens of a window, L layers, H query heads,
# K key/value heads, D head size, V vocabulary


@dataclass(frozen=True)
class SamplerConfig:
    group_size: Annotated[int, ">= 2"] = 8
    """completions per prompt (G)"""
    max_new_tokens: Annotated[int, ">= 1"] = 1024
    """a completion is cut here (finish reason "length"); also the constant of the Dr. GRPO loss"""
    temperature: Annotated[float, "> 0"] = 1.0
    """softmax temperature of rollouts; inside every log-prob of sampler, learner and reference"""
    slots: Annotated[int, ">= 0", "free"] = 0
    """rows decoded at a time, 0 for all of them; fewer slots need less memory and more steps"""


@dataclass(frozen=True)
class Completion:
    """What one row sampled; the stop token, if one was drawn, is the last of `tokens`."""
    tokens: list[int]
    logprobs: list[float]                               # of each token at the sampling temperature, in nats
    finish: str                                         # "stop" | "length"
    entropies: list[float] | None = None                # of the distributions drawn from, in nats


SYNC_EVERY = 8                                          # steps between two looks of the host at what a GPU has finished
COLUMNS = 64                                            # tokens by which the cache grows on a CPU
FIRST_COLUMNS = 256                                     # tokens beyond the prompt for which a GPU has room at first
PREFILL_TOKENS = 2**15                                  # padded tokens of a pass over prompts: 1 GB of K and V at 1.5B
ONE_THREAD_BELOW = 2**24                                # (rows + READING) x parameters of a block: one thread is faster
READING = 16                                            # rows that a CPU multiplies in the time it reads the matrix
FREE_SHARE = 0.9                                        # of a GPU's free memory, for keys and values


def row_bucket(live: int, gpu: bool) -> int:
    """Rows that are computed for `live` ones: for each number a GPU captures a graph, a CPU's oneDNN keeps a kernel."""
    multiple = 4 if not gpu else 8 if live <= 32 else 16 if live <= 128 else 32
    return next((rows for rows in (1, 2, 4) if rows >= live), -(-live // multiple) * multiple)


class Slots:
    """All that a decode step reads and writes, one slot per row, and the CUDA graphs captured over it.

    - Keys and values of each layer, (S, T, K, D) twice. In memory (S, T, K, D) for the ragged kernel, (S, K, T, D) for
      SDPA, which reads a head's tokens one after the other.
    - `state_S5`: the position a row writes next, tokens in its window, the last token, tokens it may still draw, and
      whether it runs. A slot without a row stands still at position 0.
    - A window of W tokens, log-probs and uniform numbers, which the host reads and fills again; column W takes what a
      finished row draws until then.

    Memory grows with the rows: on a CPU by COLUMNS tokens at a time, on a GPU in doublings. Only `resize` moves it.
    """

    def __init__(self, model: Transformer, window: int):
        g, weight = model.g, model.norm.weight
        self.window, self.gpu = window, weight.is_cuda
        dtype = product_dtype(weight)
        empty = weight.new_empty(0, 0, g.kv_heads, g.head_dim, dtype=dtype)
        self.varlen = has_varlen(empty)
        self.layers = [[empty, empty] for _ in range(g.layers)]
        self.bias_ST = weight.new_empty(0, 0, dtype=dtype)      # 0 where a row may look, -inf elsewhere
        self.zero = weight.new_zeros((), dtype=dtype)           # a capture takes no number from the host
        self.state_S5 = weight.new_zeros(0, 5, dtype=torch.long)
        self.tokens_SW = self.state_S5.new_zeros(0, window + 1)
        self.logprobs_SW = self.tokens_SW.double()              # of float32 numbers
        self.entropies_SW = self.tokens_SW.double()
        self.uniform_SW = self.tokens_SW.double()
        self.count = self.columns = 0                           # capacity: slots, and tokens of each
        self.graphs: dict[int, torch.cuda.CUDAGraph] = {}       # a captured step per row bucket
        self.pool = self.stream = None

    def reserve(self, live: int, slots: int, tokens: int, longest: int) -> None:
        """Makes room for `slots` rows of `tokens` tokens, keeping the first `live`; none can pass `longest` tokens."""
        if tokens <= self.columns and slots <= self.count:
            return
        columns = self.columns
        if tokens > columns:
            ahead = (2 * columns or tokens + FIRST_COLUMNS) if self.gpu else 0
            columns = min(max(tokens, ahead), longest)
        self.resize(live, slots, -(-columns // COLUMNS) * COLUMNS)

    def resize(self, live: int, slots: int, columns: int) -> None:
        """Moves the first `live` rows to new memory, a layer at a time, and drops the graphs captured over the old."""
        self.graphs = {}
        if self.gpu:                                    # a pool whose graphs are gone takes no more captures
            self.pool, self.stream = torch.cuda.graph_pool_handle(), self.stream or torch.cuda.Stream()

        def move(old: Tensor, new: Tensor) -> Tensor:
            new[:live, : old.shape[1]] = old[:live]
            return new

        def move_cache(old: Tensor) -> Tensor:
            K, D = old.shape[2:]
            if self.varlen:                             # never reads past a row's last token
                return move(old, old.new_empty(slots, columns, K, D))
            return move(old, old.new_zeros(slots, K, columns, D).transpose(1, 2))       # 0 times a stale nan is nan

        for layer in self.layers:
            for i in range(2):
                layer[i] = move_cache(layer[i])
        if not self.varlen:
            self.bias_ST = move(self.bias_ST, self.bias_ST.new_full((slots, columns), float("-inf")))
        self.state_S5 = move(self.state_S5, self.state_S5.new_zeros(slots, 5))
        self.position_S, self.drawn_S, self.last_S, self.left_S, self.runs_S = self.state_S5.unbind(1)      # views
        self.tokens_SW, self.logprobs_SW, self.entropies_SW, self.uniform_SW = (
            move(old_SW, old_SW.new_zeros(slots, self.window + 1))
            for old_SW in (self.tokens_SW, self.logprobs_SW, self.entropies_SW, self.uniform_SW))
        self.slot_S = torch.arange(slots, device=self.state_S5.device)
        self.starts_S = torch.arange(slots + 1, dtype=torch.int32, device=self.state_S5.device)
        self.count, self.columns = slots, columns

    def begin_step(self, n: int, longest: int) -> None:
        """Rows 0..n-1 write one token each at their positions; `longest` bounds the tokens that a row then has."""
        self.write_at = self.slot_S[:n], self.position_S[:n]
        if self.varlen:
            self.used_n = (self.position_S[:n] + 1).int()
            self.key_starts = self.starts_S[: n + 1] * self.columns
        else:
            self.bias_ST.index_put_(self.write_at, self.zero)
            self.bias_nT = self.bias_ST[:n, :longest]
        if not self.gpu:
            K = self.layers[0][0].shape[2]
            first_nK = (self.slot_S[:n, None] * K + torch.arange(K)) * self.columns     # in memory, of slot and head
            self.write_rows = (first_nK + self.position_S[:n, None]).flatten()

    def attend(self, layer: int, q_n1HD: Tensor, k_n1KD: Tensor, v_n1KD: Tensor) -> Tensor:
        """Writes this step's keys and values at each row's position and attends to everything up to it.

        The ragged kernel reads live tokens only. Its `max_k`, here all columns, must be at least every row's length at
        every replay: what lies past it is not read, without a word. Elsewhere a bias masks the rest, and the query
        heads that share a key/value head are folded into its query length, so K and V are neither expanded nor copied.
        """
        keys, values = self.layers[layer]
        q_nHD, k_nKD, v_nKD = (x[:, 0].to(keys.dtype) for x in (q_n1HD, k_n1KD, v_n1KD))
        n, H, D = q_nHD.shape
        if self.gpu:
            keys[self.write_at], values[self.write_at] = k_nKD, v_nKD
        else:                                           # an index_put_ of 3,000 numbers would wake a second thread
            for cache, new_nKD in ((keys, k_nKD), (values, v_nKD)):
                cache.transpose(1, 2).view(-1, D).index_copy_(0, self.write_rows, new_nKD.reshape(-1, D))
        S, T, K, _ = keys.shape
        if self.varlen:                                 # not varlen_attn, which has no seqused_k in torch 2.11
            keys, values = keys.view(S * T, K, D), values.view(S * T, K, D)
            out = torch.ops.aten._flash_attention_forward(q_nHD, keys, values, self.starts_S[: n + 1], self.key_starts,
                                                          1, T, 0.0, False, False, seqused_k=self.used_n)[0]
        else:
            keys, values = (x[:n, : self.bias_nT.shape[1]].transpose(1, 2) for x in (keys, values))
            out = F.scaled_dot_product_attention(q_nHD.view(n, K, H // K, D), keys, values, self.bias_nT[:, None, None])
        return out.reshape(n, 1, H, D).to(q_n1HD.dtype)

    def admit(self, slots: slice, prompt_kv: Tensor, left: list[int]) -> None:
        """Rows that may draw `left` tokens each take the slots, with one prompt's keys and values (2, L, T, K, D)."""
        length = prompt_kv.shape[2]
        for layer, kv in zip(self.layers, prompt_kv.unbind(1)):
            for cache, prompt in zip(layer, kv):
                cache[slots, :length] = prompt
                if not self.varlen:
                    cache[slots, length:] = 0
        if not self.varlen:
            self.bias_ST[slots, :length] = 0
            self.bias_ST[slots, length:] = float("-inf")
        self.state_S5[slots] = torch.tensor([[length - 1, 0, 0, n, 1] for n in left], device=self.state_S5.device)

    def move(self, to: list[int], source: list[int], live: int) -> None:
        """Rows `source` take the slots `to`; from slot `live` on there are none."""
        if to:
            to, source = (torch.tensor(slots, device=self.state_S5.device) for slots in (to, source))
            for x_S in (self.state_S5, self.bias_ST, *chain(*self.layers)):
                if len(x_S):                            # no bias for the ragged kernel
                    x_S[to] = x_S[source]
        self.state_S5[live:] = 0

    def read(self, live: int) -> tuple[list[list[int]], list[list[int]], list[list[float]], list[list[float]]]:
        """State, tokens, log-probs and entropies of the live rows; the one place where the host waits for the device.
        """
        parts = [x_S[:live] for x_S in (self.state_S5, self.tokens_SW, self.logprobs_SW, self.entropies_SW)]
        # float64 holds every position and token exactly
        state, tokens, logprobs, entropies = torch.cat(parts, 1).cpu().split([part.shape[1] for part in parts], 1)
        return state.long().tolist(), tokens.long().tolist(), logprobs.tolist(), entropies.tolist()

    def replay(self, n: int, step: Callable[[int, int], None]) -> None:
        """Runs step(n, columns) as a CUDA graph, captured at its first call."""
        if n not in self.graphs:
            saved_S5 = self.state_S5.clone()            # the warm-up runs the step; all else is written again
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                step(n, self.columns)
            torch.cuda.current_stream().wait_stream(self.stream)
            self.state_S5.copy_(saved_S5)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
                step(n, self.columns)
            self.graphs[n] = graph
        self.graphs[n].replay()


class Sampler:
    """Samples from its own compute-dtype copy of the policy; `load_weights` refreshes the copy after an optimizer step.

    On a GPU the slots and their graphs stay for the next call; `release` gives their memory back.
    """

    def __init__(self, model: Transformer, config: SamplerConfig, stop_ids: Sequence[int], top_p: float = 1.0,
                 section: str = "sampler"):
        """`top_p` < 1, like temperature 0 (greedy), is for evaluation. `section`: of the config, for messages."""
        self.model, self.config, self.top_p, self.section = model.eval(), config, top_p, section
        self.device = model.norm.weight.device
        self.gpu = self.device.type == "cuda"
        if beyond := [i for i in stop_ids if not 0 <= i < model.g.vocab]:
            raise ValueError(f"the end of a text is token {beyond[0]}, and the model has {model.g.vocab} of them: it "
                             "could never end one; is this the model's own tokenizer?")
        self.stop_ids = set(stop_ids)
        self.is_stop = torch.zeros(model.g.vocab, dtype=torch.bool, device=self.device)
        self.is_stop[list(stop_ids)] = True
        self.sync_every = SYNC_EVERY if self.gpu else 1
        self.slots: Slots | None = None
        self.told = False                               # that there is no memory for all rows at a time
        self.model.pack()
        self.model.fuse()

    def load_weights(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Copies (our parameter name, full tensor) pairs into the sampler's model; each parameter must come once."""
        parameters = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, tensor in tensors:
                target = parameters.pop(name)           # in place: captured graphs go on reading it
                # converted on the device: a copy of offloaded weights would be on the host
                target.copy_(tensor.to(target.device, non_blocking=True))
        assert not parameters, f"sampler weights not refreshed: {list(parameters)}"
        self.model.pack()

    def release(self) -> None:
        """Gives back the memory of keys, values and graphs; the next call makes them anew."""
        self.slots = None

    @torch.inference_mode()
    def generate(self, prompts: Sequence[list[int]], group_size: int, seed: Sequence[int],
                 positions: Sequence[int] | None = None, first: int = 0) -> list[list[Completion]]:
        """`group_size` completions of each prompt (token ids), in order, with the indices first..first+group_size-1.

        `positions` are the prompts' places in the step's global list (by default 0..P-1): with `seed` and the
        completion's index they fix its random numbers, so a prompt that occurs twice gets different completions.
        Raises ValueError, before anything is allocated, for an empty prompt, one that leaves no room in the context, or
        a GPU without memory for one row.
        """
        context, max_new = self.model.g.context, self.config.max_new_tokens
        for i, prompt in enumerate(prompts):
            if not prompt:
                raise ValueError(f"prompt {i} is empty: a completion needs at least one token to follow")
            if len(prompt) + max_new > context:
                raise ValueError(f"prompt {i} has {len(prompt)} tokens; with max_new_tokens = {max_new} it exceeds the "
                                 f"model's context of {context}")
        if not prompts:
            return []
        positions = range(len(prompts)) if positions is None else positions
        seeds = [(*seed, position, g) for position in positions for g in range(first, first + group_size)]
        done = False
        try:
            flat = Rollout(self, prompts, group_size, seeds).run()
            done = True
        finally:
            if not (self.gpu and done):                 # interrupted, slots may hold half a step
                self.release()
        return [flat[p * group_size : (p + 1) * group_size] for p in range(len(prompts))]

    def step(self, n: int, columns: int) -> None:
        """Decodes a token in slots 0..n-1, none with more than `columns`. Captured on a GPU: it takes no host value."""
        slots = self.slots
        slots.begin_step(n, columns)
        hidden = self.model.hidden(slots.last_S[:n, None], slots.position_S[:n, None], slots.attend)
        self.draw(self.model.next_logits(hidden[:, 0]), slice(0, n))

    def draw(self, logits_nV: Tensor, rows: slice) -> None:
        """Draws a token for these slots and records it; a row that has finished, or an empty slot, stands still."""
        slots = self.slots
        slot_n, (_, drawn_n, last_n, left_n, runs_n) = slots.slot_S[rows], slots.state_S5[rows].unbind(1)
        uniform_n = slots.uniform_SW[slot_n, drawn_n]
        tokens_n, logprobs_n, entropies_n = sample_tokens(logits_nV, uniform_n, self.config.temperature, self.top_p)
        column_n = torch.where(runs_n > 0, drawn_n, slots.window)
        slots.tokens_SW[slot_n, column_n] = tokens_n
        slots.logprobs_SW[slot_n, column_n] = logprobs_n.float().double()
        slots.entropies_SW[slot_n, column_n] = entropies_n.double()
        last_n.copy_(tokens_n)
        slots.state_S5[rows, :2].add_(runs_n[:, None])  # position and tokens drawn
        left_n -= runs_n
        runs_n *= ~(self.is_stop[tokens_n] | (left_n <= 0))

    def bytes_per_token(self) -> int:
        g = self.model.g
        return 2 * g.layers * g.kv_heads * g.head_dim * self.model.norm.weight.element_size()

    def fitting(self, slots: int, longest: int) -> int:
        """How many of `slots` rows to decode at a time: on a GPU no more than fit when all are half of `longest` long.

        Raises ValueError if not even one fits at its longest.
        """
        if not self.gpu:
            return slots
        held = self.slots.count * self.slots.columns if self.slots else 0
        cached = max(0, torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device))
        free = FREE_SHARE * (torch.cuda.mem_get_info(self.device)[0] + cached)
        tokens = held + int(free / self.bytes_per_token())
        if tokens < longest:
            raise self.no_room(longest)
        return min(slots, max(1, 2 * tokens // longest))

    def no_room(self, longest: int) -> ValueError:
        size = longest * self.bytes_per_token() / 1e9
        return ValueError(f"{self.section}.max_new_tokens: a row of {longest} tokens needs {size:.2f} GB of keys and "
                          f"values, and the GPU has no room for it even with {self.section}.slots = 1; lower it")


class Rollout:
    """One `generate` call on the host: which row sits in which slot, and what each has drawn.

    Row p * G + g is completion g of prompt p.
    """

    def __init__(self, sampler: Sampler, prompts: Sequence[list[int]], group_size: int, seeds: list[tuple[int, ...]]):
        self.sampler, self.prompts, self.G, self.seeds = sampler, prompts, group_size, seeds
        rows, max_new = len(seeds), sampler.config.max_new_tokens
        self.limits = [max_new] * rows
        self.longest_possible = max(map(len, prompts)) + max_new
        wanted = min(sampler.config.slots or rows, rows)
        self.width = row_bucket(sampler.fitting(wanted, self.longest_possible), sampler.gpu)    # slots in use
        self.tell(self.width < wanted)
        # a CPU's host looks after every token, and reads the windows when a row has finished or they are full
        self.slots = sampler.slots = sampler.slots or Slots(sampler.model, SYNC_EVERY + 1 if sampler.gpu else COLUMNS)
        self.waiting = list(reversed(range(rows)))      # rows that have no slot yet; the next is the last
        self.row_of: list[int] = []                     # of each live slot, the row in it
        self.filled = 0                                 # upper bound on the tokens in a window
        self.longest = 0                                # upper bound on the tokens of a live row
        self.tokens: list[list[int]] = [[] for _ in range(rows)]
        self.logprobs: list[list[float]] = [[] for _ in range(rows)]
        self.entropies: list[list[float]] = [[] for _ in range(rows)]
        self.uniform: dict[int, np.ndarray] = {}        # of live rows, a number per token
        self.prompt_kv: dict[int, tuple[Tensor, Tensor]] = {}   # of prompts with waiting rows: keys and values, logits
        self.threads = torch.get_num_threads()
        self.block_size = sum(p.numel() for p in sampler.model.blocks[0].parameters())

    def tell(self, lowered: bool) -> None:
        if lowered and not self.sampler.told:
            self.sampler.told = True
            print(f"{self.sampler.section}.slots: the GPU has memory for {self.width} rows at a time, so that many are "
                  "decoded at once; samples do not depend on it", file=sys.stderr)

    def run(self) -> list[Completion]:
        try:
            while self.row_of or self.waiting:
                free = self.width - len(self.row_of)
                if self.waiting and free >= min(max(1, self.width // 8), len(self.waiting)):
                    self.admit()                        # an eighth at a time: a prefill interrupts everybody
                for _ in range(self.sampler.sync_every):
                    self.decode()
                self.look()
        finally:
            torch.set_num_threads(self.threads)
        return [Completion(tokens, logprobs, "stop" if tokens[-1] in self.sampler.stop_ids else "length", entropies)
                for tokens, logprobs, entropies in zip(self.tokens, self.logprobs, self.entropies)]

    def reserve(self, tokens: int) -> None:
        """Room for `tokens` tokens of every row; where a GPU has too little memory, half of the slots are given up."""
        while True:
            # when nobody is waiting, a CPU's free slots need no room any more
            slots = self.width if self.waiting or self.sampler.gpu else row_bucket(len(self.row_of), False)
            try:
                return self.slots.reserve(len(self.row_of), slots, tokens, self.longest_possible)
            except torch.OutOfMemoryError:
                if self.width == 1:
                    raise self.sampler.no_room(self.longest_possible) from None
            self.width = row_bucket(self.width // 2, self.sampler.gpu)
            self.tell(True)
            for row in reversed(self.row_of[self.width :]):     # they start again later and draw the same tokens
                for drawn in (self.tokens, self.logprobs, self.entropies):
                    drawn[row].clear()
                self.waiting.append(row)
            del self.row_of[self.width :]
            self.slots.move([], [], len(self.row_of))

    def decode(self) -> None:
        """One token for every live row; the dead ones that fill the bucket, at position 0, are ignored."""
        self.longest = min(self.longest + 1, self.longest_possible)     # a finished row stands still
        self.reserve(self.longest)
        self.filled += 1
        n = row_bucket(len(self.row_of), self.sampler.gpu)
        if self.sampler.gpu:
            self.slots.replay(n, self.sampler.step)
            return
        torch.set_num_threads(1 if (n + READING) * self.block_size < ONE_THREAD_BELOW else self.threads)
        self.sampler.step(n, self.longest)

    def admit(self) -> None:
        """Fills free slots: prefills the prompts of waiting rows, copies keys and values, draws the first tokens."""
        next_rows = self.waiting[len(self.row_of) - self.width :]
        self.longest = max(self.longest, *(len(self.prompts[row // self.G]) for row in next_rows))
        self.reserve(self.longest)
        rows = [self.waiting.pop() for _ in range(min(self.width - len(self.row_of), len(self.waiting)))]
        if not rows:                                    # reserving has cost the free slots
            return
        first, logits = len(self.row_of), []
        self.prefill({row // self.G for row in rows} - self.prompt_kv.keys())
        for p, group in groupby(rows, key=lambda row: row // self.G):
            slots = slice(len(self.row_of), len(self.row_of) + len(group := list(group)))
            kv, logits_1V = self.prompt_kv[p]
            self.slots.admit(slots, kv, [self.limits[row] for row in group])
            logits.append(logits_1V.expand(len(group), -1))
            self.row_of += group
        for p in self.prompt_kv.keys() - {row // self.G for row in self.waiting}:
            del self.prompt_kv[p]
        self.uniform |= {row: np.random.default_rng(self.seeds[row]).random(self.limits[row]) for row in rows}
        self.fill_windows(first)
        self.sampler.draw(torch.cat(logits), slice(first, len(self.row_of)))
        self.filled += 1

    def prefill(self, prompts: Iterable[int]) -> None:
        """Passes over right-padded prompts; keeps each one's keys and values and the logits of its first new token."""
        model, device = self.sampler.model, self.sampler.device
        order = sorted(prompts, key=lambda p: len(self.prompts[p]))
        while order:
            n = max(1, PREFILL_TOKENS // len(self.prompts[order[-1]]))
            order, batch = order[:-n], order[-n:]
            lengths = [len(self.prompts[p]) for p in batch]
            tokens_PT = pad_sequence([torch.tensor(self.prompts[p]) for p in batch], batch_first=True)
            keys_values: list[Tensor] = []

            def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                keys_values.append(torch.stack((k, v)))
                return causal_attention(layer, q, k, v)

            hidden = model.hidden(tokens_PT.to(device), attend=attend)
            logits = model.next_logits(hidden[torch.arange(len(batch)), torch.tensor(lengths) - 1])
            for i, (p, length) in enumerate(zip(batch, lengths)):
                self.prompt_kv[p] = torch.stack([kv[:, i, :length] for kv in keys_values], dim=1), logits[i : i + 1]

    def fill_windows(self, first: int) -> None:
        """Gives the rows from slot `first` on the uniform numbers of their next window."""
        uniform_nW = np.zeros((len(self.row_of) - first, self.slots.window + 1))
        for i, row in enumerate(self.row_of[first:]):
            numbers = self.uniform[row][len(self.tokens[row]) :][: self.slots.window]
            uniform_nW[i, : len(numbers)] = numbers
        self.slots.uniform_SW[first : len(self.row_of)].copy_(torch.from_numpy(uniform_nW))

    def look(self) -> None:
        """Reads the windows. Finished rows leave, and the last live rows take their slots: live rows stay at 0..n-1."""
        slots, live = self.slots, len(self.row_of)
        if not self.sampler.gpu and self.filled < slots.window and slots.runs_S[:live].all():
            return
        state, tokens, logprobs, entropies = slots.read(live)
        for slot, (row, (_, drawn, *_)) in enumerate(zip(self.row_of, state)):
            self.tokens[row] += tokens[slot][:drawn]
            self.logprobs[row] += logprobs[slot][:drawn]
            self.entropies[row] += entropies[slot][:drawn]
        slots.drawn_S[:live] = 0
        self.filled = 0
        finished = [slot for slot in range(live) if not state[slot][-1]]
        if finished:
            live -= len(finished)
            to = [slot for slot in finished if slot < live]
            source = sorted(set(range(live, len(state))) - set(finished))
            slots.move(to, source, live)
            for slot in finished:
                del self.uniform[self.row_of[slot]]
            for slot, last in zip(to, source):
                self.row_of[slot] = self.row_of[last]
            del self.row_of[live:]
            self.longest = max((position for position, *_, runs in state if runs), default=0)
        self.fill_windows(0)


def sample_tokens(logits_NV: Tensor, uniform_N: Tensor, temperature: float,
                  top_p: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """One token per row by inverse CDF of softmax(logits / temperature), its log-prob under that full distribution, and
    the distribution's entropy.

    `uniform_N` in [0, 1), float64. Temperature 0 takes the largest logit and reports log-probs at temperature 1.
    `top_p` < 1 draws from the smallest set of most likely tokens whose mass reaches top_p (see `nucleus`); log-probs
    and entropies do not change.
    Returns ids, log-probs and entropies, each (N,), the last two at least float32 and in nats. Copy-pasteable with
    `nucleus` and `inverse_cdf`: needs only torch.
    """
    logits_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
    if temperature not in (0, 1):
        logits_NV = logits_NV / temperature
    peak_N1 = logits_NV.amax(-1, keepdim=True)
    mass_NV = (logits_NV - peak_N1).exp_()
    tokens_N1, total_N1 = inverse_cdf(mass_NV, uniform_N)
    if temperature == 0:
        tokens_N1 = logits_NV.argmax(-1, keepdim=True)
    elif top_p < 1:
        tokens_N1, _ = inverse_cdf(nucleus(mass_NV, top_p), uniform_N)
    log_total_N1 = total_N1.log().to(logits_NV.dtype)
    logprobs_N1 = logits_NV.gather(-1, tokens_N1) - peak_N1 - log_total_N1
    mean_N1 = (mass_NV * logits_NV).nansum(-1, keepdim=True) / total_N1.to(logits_NV.dtype)     # 0 x -inf is left out
    entropy_N1 = peak_N1 + log_total_N1 - mean_N1
    return tokens_N1.squeeze(-1), logprobs_N1.squeeze(-1), entropy_N1.squeeze(-1)


def inverse_cdf(mass_NV: Tensor, uniform_N: Tensor) -> tuple[Tensor, Tensor]:
    """Ids (N, 1) where the running sum of the masses passes uniform x total, and the totals (N, 1) in float64.

    In two levels for a large vocabulary: one running sum over all of it is slow on a GPU (a block of threads for a row)
    and takes 8 bytes an id.
    """
    def pick(mass_NX: Tensor, ends_NX: Tensor, target_N1: Tensor) -> tuple[Tensor, Tensor]:
        last_N1 = ends_NX[:, -1:]
        # rounded up to the last end, or below 0, a target would pick an id of mass 0
        target_N1 = target_N1.clamp(min=0).minimum(last_N1.nextafter(torch.zeros_like(last_N1)))
        found_N1 = torch.searchsorted(ends_NX, target_N1, right=True)
        found_N1 = found_N1.clamp(max=mass_NX.shape[-1] - 1)    # nan logits: an id with a nan log-prob for the learner
        return found_N1, target_N1 - ends_NX.gather(-1, found_N1) + mass_NX.gather(-1, found_N1)

    V, block = mass_NV.shape[-1], 128
    if V < 4096:                                        # a second level would cost more than it saves
        ends_NV = mass_NV.cumsum(-1, dtype=torch.float64)
        return pick(mass_NV, ends_NV, uniform_N[:, None] * ends_NV[:, -1:])[0], ends_NV[:, -1:]
    if V % block:
        mass_NV = torch.nn.functional.pad(mass_NV, (0, -V % block))
    blocks_NBW = mass_NV.unflatten(-1, (-1, block))
    sums_NB = blocks_NBW.sum(-1, dtype=torch.float64)
    ends_NB = sums_NB.cumsum(-1)
    block_N1, rest_N1 = pick(sums_NB, ends_NB, uniform_N[:, None] * ends_NB[:, -1:])
    block_NW = blocks_NBW.gather(1, block_N1[..., None].expand(-1, -1, block)).squeeze(1)
    inside_N1, _ = pick(block_NW, block_NW.cumsum(-1, dtype=torch.float64), rest_N1)
    return block_N1 * block + inside_N1, ends_NB[:, -1:]


def nucleus(mass_NV: Tensor, top_p: float) -> Tensor:
    """The masses, each in [0, 1], of the smallest set of largest ones that has a share top_p of their sum; 0 elsewhere.

    Masses that are equal in float32 stay or go together. Without a sort: the smallest mass in the set is found ten bits
    at a time, since positive floats are ordered as their bits are. Sums are in integers, which any order of adding
    leaves the same.
    """
    bits_NV = mass_NV.float().view(torch.int32)
    units_NV = (mass_NV.double() * 2**44).long()
    needed_N1 = (units_NV.sum(-1, keepdim=True).double() * top_p).ceil().long()
    least_N1 = torch.zeros_like(needed_N1)
    for shift in (20, 10, 0):
        digit_NV = (bits_NV >> shift & 1023).long()
        units_NX = units_NV.new_zeros(len(units_NV), 1024).scatter_add_(-1, digit_NV, units_NV)
        from_NX = units_NX.flip(-1).cumsum(-1).flip(-1)         # of this digit and the larger ones
        digit_N1 = (from_NX >= needed_N1).sum(-1, keepdim=True).sub_(1).clamp_(min=0)
        needed_N1 = needed_N1 - (from_NX - units_NX).gather(-1, digit_N1)
        units_NV = units_NV * (digit_NV == digit_N1)
        least_N1 = least_N1 | digit_N1 << shift
    return mass_NV.masked_fill(bits_NV < least_N1, 0)
