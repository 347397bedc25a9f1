"""Is the program right on this GPU, and how fast? One command, one GPU, under 9 minutes, without network.

    python benchmarks/gpu.py [--only NAME ...] [--budget 520] [--out runs/gpu.jsonl]
    python benchmarks/gpu.py --smoke                    # every line of it on a CPU, in under 2 minutes

Correctness first (up to tiny_recipe), then speed and memory at the geometry of DeepSeek-R1-Distill-Qwen-1.5B. Weights
are random, made on the device from a seed; nothing is read but the repository's files. Every result is printed and
appended to the output file at once, as one JSON line:

    check, ok (null: skipped), tolerance (largest value of a figure to pass), figures, seconds, device, commit, torch

A check that raises is a failed line with the end of its traceback, and the others go on. What would not fit into
--budget seconds any more is a skipped line. The exit code is 1 if a check failed. Figures end with their units; a share
is of the bandwidth (copy of 2 GB) or of the product rate (8,192^3 in bfloat16) that were measured in the same run.

--smoke runs the sampler on the tests' stand-in for a GPU and all else on the CPU, with tiny shapes. Tolerances are the
same, but memory is not compared with plan/memory.py; times say "smoke", because they mean nothing there.
"""
import argparse
import gc
import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))                           # before this folder, whose sampler.py is another one

import model as model_module  # noqa: E402
import sampler as sampler_module  # noqa: E402
from dra_grpo import LESS_MEMORY  # noqa: E402
from learner import Learner, LearnerConfig, Row  # noqa: E402
from model import ModelConfig, Transformer, rope_frequencies  # noqa: E402
from plan.memory import UPDATE, Work, parts, peaks  # noqa: E402
from ranks import Stop, full_weights, leave, start_ranks  # noqa: E402
from sampler import Completion, Sampler, SamplerConfig, sample_tokens  # noqa: E402

# P prompts, G completions each, N or n rows, T tokens, M sampled tokens, H query heads, K key/value heads, D head size,
# V vocabulary

GEOMETRY = ROOT / "benchmarks/r1_distill_qwen_1_5b/config.json"
SMALL = dict(num_hidden_layers=2, hidden_size=64, intermediate_size=128, num_attention_heads=4, num_key_value_heads=2,
             vocab_size=1024)
CUDA = torch.device("cuda", 0)
TEMPERATURE, LR = 0.7, 1e-6                             # of the recipe
TIMES = ("_s", "_ms", "_us", "_TBps", "_TFLOPs", "_share", "_ratio")        # ends of figures that are made of times

Figures = dict[str, object]
Limits = dict[str, float]


class Skipped(Exception):
    """Raised by a check that cannot run here, with the reason."""


@dataclass(frozen=True)
class Check:
    seconds: float
    """expected on an H100"""
    function: Callable[["Bench", Figures], Limits | None]
    """adds its figures one after the other, so that they survive if it fails; returns the largest values that pass"""


CHECKS: dict[str, Check] = {}


def check(seconds: float):
    """Registers a check that is expected to take so long; they run in the order in which they stand here."""
    def register(function: Callable) -> Callable:
        CHECKS[function.__name__] = Check(seconds, function)
        return function
    return register


class Bench:
    """What the checks share: the device, the sizes, what was measured before, and files that are made once."""

    def __init__(self, smoke: bool, scratch: Path):
        self.smoke, self.scratch = smoke, scratch
        self.measured: dict[str, float] = {}            # seconds, for checks that come later
        self.stand_ins: dict[float, object] = {}        # of the smoke, by their GB

    def size(self, full, smoke):
        """The first on a GPU, the second in the smoke."""
        return smoke if self.smoke else full

    @contextmanager
    def gpu(self, stand_in_gb: float = 80) -> Iterator[torch.device]:
        """The GPU; in the smoke there is one inside only, the tests' stand-in with so much memory."""
        if self.smoke and stand_in_gb not in self.stand_ins:
            from tests.stand_in import Gpu
            self.stand_ins[stand_in_gb] = Gpu(gb=stand_in_gb)
        with self.stand_ins[stand_in_gb] if self.smoke else nullcontext():
            yield CUDA

    @cached_property
    def rank_device(self) -> torch.device:
        """Where a rank of a run trains, with its process group started: the GPU, or the plain CPU of the smoke."""
        return start_ranks(offload=True)[2]

    def seconds(self, function: Callable[[], object], rounds: int = 1) -> float:
        """Mean of `rounds` calls; nothing else runs on the device meanwhile."""
        wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
        wait()
        start = time.perf_counter()
        for _ in range(rounds):
            function()
        wait()
        return (time.perf_counter() - start) / rounds

    def clear(self) -> None:
        """Gives unused memory back; the peak counts from here."""
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak_gb(self) -> float:
        """Most GB allocated on the device since `clear`; 0 on the plain CPU of the smoke."""
        return torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else 0.0

    @contextmanager
    def memory_fraction(self, share: Callable[[int], float]) -> Iterator[None]:
        """Inside, this process may hold share(bytes of the GPU) of the GPU; the smoke has no such limit."""
        if not self.smoke:
            share_of_all = min(1.0, share(torch.cuda.get_device_properties(0).total_memory))
            torch.cuda.set_per_process_memory_fraction(share_of_all)
        try:
            yield
        finally:
            self.clear()
            if not self.smoke:
                torch.cuda.set_per_process_memory_fraction(1.0)

    @cached_property
    def rates(self) -> dict[str, float]:
        """Bytes a second of a copy (read and written) and FLOP a second of a product in bfloat16, measured now."""
        device, N = self.rank_device, self.size(8192, 64)
        source = torch.empty(self.size(2**31, 2**20), dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        left, right = (torch.randn(N, N, device=device, dtype=torch.bfloat16) for _ in range(2))
        found = {}
        for name, work, function in (("bandwidth", 2 * source.nbytes, lambda: target.copy_(source)),
                                     ("products", 2 * N**3, lambda: left @ right)):
            self.seconds(function, 3)
            found[name] = work / self.seconds(function, 10)
        return found

    @property
    def n_tokens(self) -> int:
        """Ids of the tokenizer; the matrices have more rows, as the policy's have."""
        return self.size(151665, 1003)

    def policy(self, device: torch.device, dtype: torch.dtype = torch.bfloat16, seed: int = 0, peaked: bool = False,
               **changes) -> Transformer:
        """Random weights of std 0.02, made on the device; `changes` are to config.json.

        The next token is near uniform or, if `peaked`, has an entropy of about 1 nat: V Gaussian logits have that if
        their std is sqrt(2 ln V) / 0.45 (random energy model; tried for V = 1,003 and 151,665). But then they reach 58,
        where numbers in bfloat16 are 0.25 apart; a trained policy's do not. For speed, not for differences in bfloat16.
        """
        config = json.loads(GEOMETRY.read_text()) | self.size({}, SMALL) | changes
        policy = without_values(config, dtype, device)
        policy.n_tokens = min(self.n_tokens, policy.g.vocab)
        torch.manual_seed(seed)
        with torch.no_grad():
            for name, parameter in policy.named_parameters():
                if parameter.ndim == 1:
                    parameter.fill_(0.0 if name.endswith("bias") else 1.0)
                elif name.startswith("head") and peaked:
                    parameter.normal_(0, math.sqrt(2 * math.log(policy.n_tokens) / policy.g.hidden) / 0.45)
                else:
                    parameter.normal_(0, 0.02)
        return policy

    @cached_property
    def folder(self) -> str:
        """The random policy in bfloat16 as a Hugging Face folder, which a learner loads."""
        self.policy(self.rank_device, peaked=True).save_pretrained(self.scratch / "policy")
        self.clear()
        return str(self.scratch / "policy")

    def learner(self, max_new_tokens: int, offload: bool = False) -> Learner:
        """The recipe's: bfloat16 over float32 masters, reference, recomputation."""
        device = self.rank_device
        model = ModelConfig(self.folder, "bfloat16", activation_checkpointing=True)
        return Learner(model, LearnerConfig(kl_beta=0.04, lr=LR, offload=offload), self.folder, device, self.n_tokens,
                       TEMPERATURE, max_new_tokens)

    def lengths(self) -> list[int]:
        """Of a step's 48 completions: lognormal, 2,417 tokens in the mean, a fifth cut at 3,584."""
        n, median, cap = self.size((48, 2300, 3584), (6, 12, 24))
        return np.random.default_rng(0).lognormal(math.log(median), 0.55, n).clip(2, cap).astype(int).tolist()

    def prompts(self, count: int, tokens: int) -> list[list[int]]:
        return np.random.default_rng(1).integers(0, self.n_tokens, (count, tokens)).tolist()

    def rows(self, lengths: Sequence[int], prompt_tokens: int) -> list[Row]:
        """Random rows for an update; of its figures only `gap` depends on the made-up log-probs."""
        rng = np.random.default_rng(2)

        def draw(n: int) -> list[int]:
            return rng.integers(0, self.n_tokens, n).tolist()

        return [Row(draw(prompt_tokens), Completion(draw(n), [-1.0] * n, "stop"), float(rng.normal())) for n in lengths]


def without_values(config: dict, dtype: torch.dtype, device: torch.device | str) -> Transformer:
    """A policy whose weights are not set yet."""
    with torch.device("meta"):
        policy = Transformer(config)
    policy.to(dtype).to_empty(device=device)
    policy.inv_freq = rope_frequencies(policy.g).to(device)     # float32 in every precision
    return policy


def converted(policy: Transformer, dtype: torch.dtype, device: torch.device | str) -> Transformer:
    """A copy elsewhere or in another precision."""
    copied = without_values(policy.config, dtype, device)
    copied.n_tokens = policy.n_tokens
    with torch.no_grad():
        for ours, theirs in zip(copied.parameters(), policy.parameters()):
            ours.copy_(theirs)
    return copied


def without_blocks(policy: Transformer) -> Transformer:
    """Only the LM head is left, over normalised embeddings."""
    policy.blocks = torch.nn.ModuleList()
    return policy


def product_weights(policy: Transformer) -> int:
    """Parameters that every token is multiplied with; an embedding is only looked up."""
    return sum(p.numel() for name, p in policy.named_parameters() if not name.startswith("embed"))


# ---------------------------------------------------------------------- what knows the program's internals, here alone


@contextmanager
def forced_lengths(lengths: Sequence[int]) -> Iterator[None]:
    """Row i of every `generate` inside ends after lengths[i] tokens, whatever it draws."""
    class Forced(sampler_module.Rollout):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.limits[:] = lengths

    with patch.object(sampler_module, "Rollout", Forced):
        yield


def eager():
    """Inside, a step runs kernel after kernel, the same ones over the same memory, where a graph would be replayed."""
    return patch.object(sampler_module.Slots, "replay", lambda slots, n, step: step(n, slots.columns))


def first_columns(tokens: int):
    """Inside, a cache has room for so many tokens after the prompts before it grows."""
    return patch.object(sampler_module, "FIRST_COLUMNS", tokens)


def chunks_of(elements: int):
    """Inside, the LM head runs over chunks of so many logits."""
    return patch.object(model_module, "logits_per_chunk", lambda gpu: elements)


@contextmanager
def counted(bench: Bench, figures: Figures) -> Iterator[None]:
    """Adds up captures (number, seconds, bytes) and moves of the cache (number, seconds) inside."""
    capture, resize = torch.cuda.graph, sampler_module.Slots.resize
    figures |= {"captures": 0, "captures_s": 0.0, "captures_GB": 0.0, "moves": 0, "moves_s": 0.0}

    @contextmanager
    def counted_capture(*arguments, **options):
        torch.cuda.empty_cache()                        # as a capture does: else what that frees would be subtracted
        reserved, start = torch.cuda.memory_reserved(), time.perf_counter()
        with capture(*arguments, **options):
            yield
        figures["captures"] += 1
        figures["captures_s"] += time.perf_counter() - start
        figures["captures_GB"] += (torch.cuda.memory_reserved() - reserved) / 1e9

    def counted_resize(slots, *arguments):
        figures["moves"] += 1
        figures["moves_s"] += bench.seconds(lambda: resize(slots, *arguments))

    with patch.object(torch.cuda, "graph", counted_capture), \
            patch.object(sampler_module.Slots, "resize", counted_resize):
        yield


def predicted_gb(policy: Transformer, **settings) -> dict[str, float]:
    """plan/memory.py's peaks of the phases of a step of the recipe, in GB."""
    found = parts(policy, Work(dtype=torch.bfloat16, reference=True, checkpointing=True, **settings))
    return {phase: size / 1e9 for phase, size in peaks(found).items()}


def uniform(seed: Sequence[int], position: int, completion: int, token: int) -> float:
    """The number from which the sampler draws a token."""
    return np.random.default_rng((*seed, position, completion)).random(token + 1)[token]


# ---------------------------------------------------------------------- comparisons


def norm(tensors: Iterable[Tensor]) -> float:
    """Euclidean norm of all of them together."""
    return math.sqrt(sum(tensor.detach().double().square().sum().item() for tensor in tensors))


def distance(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what is expected."""
    expected = expected.detach().double()
    return norm([found.detach().to(expected.device, torch.float64) - expected]) / norm([expected])


def flat(groups: list[list[Completion]]) -> list[Completion]:
    return [completion for group in groups for completion in group]


def first_differences(found: list[list[Completion]], expected: list[list[Completion]]) -> dict[int, int]:
    """Row -> place of its first token that is not the expected one, for rows that have one."""
    places = {}
    for row, (ours, theirs) in enumerate(zip(flat(found), flat(expected), strict=True)):
        if ours.tokens != theirs.tokens:
            pairs = zip([*ours.tokens, -1], [*theirs.tokens, -1])
            places[row] = next(i for i, (a, b) in enumerate(pairs) if a != b)
    return places


def teacher_forced(policy: Transformer, prompts: list[list[int]], groups: list[list[Completion]]) -> Tensor:
    """Log-probs (M,) of all sampled tokens, row after row, from one pass over the whole rows."""
    rows = [(prompt, completion.tokens) for prompt, group in zip(prompts, groups) for completion in group]
    shape = len(rows), max(len(prompt) + len(tokens) for prompt, tokens in rows)
    tokens_NT, mask_NT = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.bool)
    for i, (prompt, tokens) in enumerate(rows):
        tokens_NT[i, : len(prompt) + len(tokens)] = torch.tensor(prompt + tokens)
        mask_NT[i, len(prompt) : len(prompt) + len(tokens)] = True
    device = policy.norm.weight.device
    with torch.no_grad():
        return policy.token_logprobs(tokens_NT.to(device), mask_NT.to(device), TEMPERATURE)[0].cpu()[mask_NT]


# ---------------------------------------------------------------------- correctness


@check(8)
def machine(bench: Bench, figures: Figures) -> None:
    """What runs here, and the denominators of all shares."""
    figures |= {"bandwidth_TBps": bench.rates["bandwidth"] / 1e12, "products_TFLOPs": bench.rates["products"] / 1e12,
                "python": sys.version.split()[0], "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(),
                "attention": [name for name in ("flash", "cudnn", "mem_efficient", "math")
                              if getattr(torch.backends.cuda, f"{name}_sdp_enabled")()]}
    if not bench.smoke:
        properties = torch.cuda.get_device_properties(0)
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        figures |= {"memory_GB": properties.total_memory / 1e9, "capability": f"{properties.major}.{properties.minor}",
                    "driver": subprocess.run(query, capture_output=True, text=True).stdout.strip()}


@check(6)
def ragged_op(bench: Bench, figures: Figures) -> Limits:
    """torch's ragged attention, one query a row, against float32, with nan after a row's last token.

    `max_k`, the bound on the rows' lengths, is exact, or the capacity, as in a captured step.
    """
    H, K, D = bench.size((12, 2, 128), (4, 2, 16))
    for n in bench.size((1, 5, 48), (1, 5)):
        for T in bench.size((192, 4096), (192, 256)):
            with bench.gpu() as device:
                torch.manual_seed(n + T)
                q_nHD, keys_nTKD, values_nTKD = (torch.randn(*shape, D, device=device, dtype=torch.bfloat16)
                                                 for shape in ((n, H), (n, T, K), (n, T, K)))
                used_n = torch.randint(1, T, (n,), device=device)
                unused_nT = torch.arange(T, device=device) >= used_n[:, None]
                keys_nTHD, values_nTHD = (x.float().repeat_interleave(H // K, 2) for x in (keys_nTKD, values_nTKD))
                scores_nHT = torch.einsum("nhd,nthd->nht", q_nHD.float(), keys_nTHD) / D**0.5
                p_nHT = scores_nHT.masked_fill(unused_nT[:, None], -math.inf).softmax(-1)
                expected_nHD = torch.einsum("nht,nthd->nhd", p_nHT, values_nTHD)
                for x in (keys_nTKD, values_nTKD):
                    x.masked_fill_(unused_nT[..., None, None], math.nan)
                starts = torch.arange(n + 1, device=device, dtype=torch.int32)
                rows = q_nHD, keys_nTKD.flatten(0, 1), values_nTKD.flatten(0, 1)
                for name, max_k in (("exact", int(used_n.max())), ("capacity", T)):
                    found_nHD = torch.ops.aten._flash_attention_forward(
                        *rows, starts, starts * T, 1, max_k, 0.0, False, False, seqused_k=used_n.int())[0]
                    figures[f"n={n} T={T} {name}"] = distance(found_nHD, expected_nHD)
    return dict.fromkeys(figures, 4e-3)


@check(10)
def logits(bench: Bench, figures: Figures) -> Limits:
    """Logits on the GPU: float32 against the CPU's, bfloat16 at the real width against float32; over their std."""
    generator = torch.Generator().manual_seed(0)
    tokens_NT = torch.randint(0, bench.n_tokens, bench.size((4, 256), (3, 24)), generator=generator)
    narrow = dict(num_hidden_layers=4, hidden_size=256, intermediate_size=1024, num_attention_heads=4)
    with torch.no_grad(), bench.gpu() as device:
        policy = bench.policy(device, torch.float32, **bench.size(narrow, {}))
        found_NTV, expected_NTV = policy(tokens_NT.to(device)), converted(policy, torch.float32, "cpu")(tokens_NT)
        figures["fp32 largest"] = ((found_NTV.cpu() - expected_NTV).abs().max() / expected_NTV.std()).item()
        policy = bench.policy(device, num_hidden_layers=bench.size(4, 2))
        exact = converted(policy, torch.float32, device)
        figures["bf16 rms"] = distance(policy(tokens_NT.to(device)), exact(tokens_NT.to(device)))
    return {"fp32 largest": 1e-4, "bf16 rms": 2e-2}


@check(10)
def logprobs(bench: Bench, figures: Figures) -> Limits:
    """Log-probs, entropies and gradients against float64 on the CPU, ragged masks, temperature 0.7."""
    N, T = bench.size((3, 128), (3, 24))
    narrow = dict(num_hidden_layers=2, hidden_size=256, intermediate_size=1024, num_attention_heads=4, vocab_size=4096)
    tokens_NT = torch.randint(0, 1000, (N, T), generator=torch.Generator().manual_seed(0))
    place_T, ends_N1 = torch.arange(T), torch.tensor([[T], [T - T // 4], [T - 1]])
    mask_NT = (place_T >= T // 3) & (place_T < ends_N1)
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        with bench.gpu() as device:
            policy = bench.policy(device, dtype, **bench.size(narrow, {}))
            exact = converted(policy, torch.float64, "cpu")
            found = policy.token_logprobs(tokens_NT.to(device), mask_NT.to(device), TEMPERATURE)
            expected = exact.token_logprobs(tokens_NT, mask_NT, TEMPERATURE)
            for logp_NT, _ in (found, expected):
                (logp_NT * torch.linspace(-1, 1, T, device=logp_NT.device)).sum().backward()
            figures |= {f"{name} logp": distance(found[0], expected[0]),
                        f"{name} entropy": distance(found[1], expected[1]),
                        f"{name} gradient": max(distance(ours.grad, theirs.grad)
                                                for ours, theirs in zip(policy.parameters(), exact.parameters()))}
    return {figure: 1e-5 if figure.startswith("fp32") else 3e-2 for figure in figures}


@check(6)
def lm_head(bench: Bench, figures: Figures) -> Limits:
    """The LM head in chunks against one dense product in float32: log-probs, in bfloat16 the gradient of its matrix."""
    N, T = bench.size((4, 501), (3, 25))
    for dtype in (torch.float32, torch.bfloat16):
        with bench.gpu() as device:
            policy = without_blocks(bench.policy(device, dtype, peaked=dtype == torch.float32, num_hidden_layers=1))
            tokens_NT = torch.randint(0, policy.n_tokens, (N, T), device=device)
            mask_NT = torch.ones_like(tokens_NT, dtype=torch.bool)
            mask_NT[:, 0] = False
            upstream_NT = torch.linspace(-1, 1, T, device=device).expand(N, T)
            with chunks_of(policy.g.vocab * bench.size(110, 7)):
                logp_NT, _ = policy.token_logprobs(tokens_NT, mask_NT, TEMPERATURE)
                (logp_NT * upstream_NT).sum().backward()
            with torch.no_grad():
                hidden_MC = policy.hidden(tokens_NT)[:, :-1].flatten(0, 1).float()
            dense_VC = policy.head_weight.detach()[: policy.n_tokens].float().requires_grad_()
            logits_MV = hidden_MC @ dense_VC.t() / TEMPERATURE
            dense_M = -F.cross_entropy(logits_MV, tokens_NT[:, 1:].flatten(), reduction="none")
            (dense_M * upstream_NT[:, 1:].flatten()).sum().backward()
            if dtype == torch.float32:
                figures["fp32 logp"] = distance(logp_NT[:, 1:].flatten(), dense_M)
            else:
                gradient_VC = policy.head_weight.grad
                figures["bf16 dW"] = distance(gradient_VC[: policy.n_tokens], dense_VC.grad)
                figures["gradient of unknown ids"] = gradient_VC[policy.n_tokens :].abs().max().item()
    return {"fp32 logp": 1e-5, "bf16 dW": 6e-3, "gradient of unknown ids": 0.0}


@check(10)
def sampler_fp32(bench: Bench, figures: Figures) -> Limits:
    """Graphs against the CPU, float32, tiny policy, stops, refill; tokens differ only where a draw is at a boundary."""
    P, G, slots, new = bench.size((8, 8, 16, 62), (3, 2, 4, 24))
    prompts, seed, stops = [[5 + i, 6, 7, 8 + i, 9][: 3 + i % 3] for i in range(P)], (0, 1), [0, 1, 2]
    results = []
    for place in (bench.gpu, nullcontext):
        with place() as device:
            policy = Transformer.from_pretrained(ROOT / "tiny/policy", torch.float32, device or "cpu")
            results.append(Sampler(policy, SamplerConfig(G, new, slots=slots), stops).generate(prompts, G, seed))
    places, expected = first_differences(*results), flat(results[1])
    compared = sum(places.get(row, len(completion.tokens) - 1) + 1 for row, completion in enumerate(expected))
    exact, worst = Transformer.from_pretrained(ROOT / "tiny/policy", torch.float64), 0.0
    for row, i in places.items():
        with torch.no_grad():
            logits_V = exact(torch.tensor([prompts[row // G] + expected[row].tokens[:i]]))[0, -1]
        from_each_V = (logits_V.softmax(-1).cumsum(-1) - uniform(seed, row // G, row % G, i)).abs()
        worst = max(worst, from_each_V.min().item())
    figures |= {"rows": P * G, "rows that differ": len(places), "share of tokens that differ": len(places) / compared,
                "farthest from a boundary": worst}
    return {"share of tokens that differ": 1e-3, "farthest from a boundary": 1e-6}


@check(15)
def graphs(bench: Bench, figures: Figures) -> Limits:
    """Graphs against eager steps, bfloat16, ragged kernel: growing cache, buckets, refill, new weights. Bit for bit."""
    stops, layers = range(0, bench.n_tokens, bench.size(200, 33)), bench.size(4, 2)
    few, G = bench.size((6, 8), (3, 4))
    # (lengths of prompts, completions of each, new tokens, slots); in the last two, rows end below a multiple of 64
    cases = {"growing": ([10 + 8 * i for i in range(few)], G, bench.size(450, 42), 0),
             "refill": ([40 + 11 * i for i in range(few)], G, bench.size(130, 24), bench.size(16, 4)),
             "slots 0": ([62, 60, 55], 3, 66, 0), "slots 4": ([62, 20, 62], 3, 66, 4)}
    limits = dict.fromkeys(("not the same", "new weights not used", "repeated, not the same", "repeated, captures"), 0)
    figures |= limits
    for name, (lengths, G, new, slots) in cases.items():
        prompts = [row[:n] for row, n in zip(bench.prompts(len(lengths), max(lengths)), lengths)]
        results, counts = [], []
        with bench.gpu() as device, first_columns(0):
            for mode in (nullcontext, eager):
                policy = bench.policy(device, num_hidden_layers=layers)
                sampler = Sampler(policy, SamplerConfig(G, new, slots=slots), stops)
                for seed in (0, 1, 1):
                    weights = bench.policy(device, seed=seed, num_hidden_layers=layers)
                    sampler.load_weights(weights.named_parameters())
                    with mode(), counted(bench, count := {}):
                        results.append(sampler.generate(prompts, G, (3, 4)))
                    counts.append(count)
        found, expected = results[:3], results[3:]
        figures["not the same"] += found != expected
        figures["new weights not used"] += found[0] == found[1]
        figures["repeated, not the same"] += found[1] != found[2]
        figures["repeated, captures"] += counts[2]["captures"]
        differ = [list(first_differences(*pair).items())[:4] for pair in zip(found, expected)]
        figures[name] = {"tokens": sum(len(completion.tokens) for completion in flat(found[0])),
                         "captures": counts[0]["captures"], "moves": counts[0]["moves"], "first differences": differ}
    return limits


@check(8)
def draw(bench: Bench, figures: Figures) -> Limits:
    """1e5 draws, a tenth from a nucleus, against sorted probabilities in float64; different only at a boundary."""
    n, V = bench.size((1000, 151665), (100, 5003))
    for top_p, count in ((1.0, bench.size(90, 9)), (0.95, bench.size(10, 1))):
        differ, worst, worst_logp = 0, 0.0, 0.0
        for i in range(count):
            with bench.gpu() as device:
                torch.manual_seed(i)
                spread = math.sqrt(2 * math.log(V)) / (0.45, 0.9)[i % 2]        # an entropy of about 1 nat, and more
                logits_V = torch.randn(V, device=device, dtype=torch.float64) * spread
                uniform_n = torch.rand(n, device=device, dtype=torch.float64)
                found_n, logp_n, _ = sample_tokens(logits_V.expand(n, V), uniform_n, 1.0, top_p)
                p_V, order_V = logits_V.softmax(-1).sort(descending=True)
                inside_V = p_V.cumsum(-1) - p_V < top_p         # the tokens before it have not reached the mass
                kept_V = torch.zeros_like(p_V).scatter(-1, order_V, p_V * inside_V)
                cumulative_V = kept_V.cumsum(-1) / kept_V.sum()
                wrong_n = found_n != torch.searchsorted(cumulative_V, uniform_n, right=True)
                differ += int(wrong_n.sum())
                for u in uniform_n[wrong_n].tolist():
                    worst = max(worst, (cumulative_V - u).abs().min().item())
                worst_logp = max(worst_logp, (logp_n - logits_V.log_softmax(-1)[found_n]).abs().max().item())
        figures |= {f"top-p {top_p} differ": differ, f"top-p {top_p} farthest from a boundary": worst,
                    f"top-p {top_p} logp": worst_logp}
    return {figure: 1e-9 for figure in figures if not figure.endswith("differ")}


def train_command(run_dir: Path, *overrides: str) -> list[str]:
    return [sys.executable, "dra_grpo.py", "--config", "configs/tiny.toml", "eval.benchmarks=[]", f"run.dir={run_dir}",
            *overrides]


def started(command: list[str], log: Path) -> subprocess.Popen:
    """The command in the repository's folder, its output in `log`."""
    with open(log, "a") as file:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        return subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, env=environment)


def finish(process: subprocess.Popen, log: Path, codes: Sequence[int] = (0,), timeout: float = 300) -> None:
    """Waits for a command; RuntimeError with its last lines if it failed."""
    try:
        code = process.wait(timeout)
    finally:
        process.kill()
    if code not in codes:
        raise RuntimeError(f"exit code {code}: {log.read_text()[-600:]}")


def train_records(path: Path) -> list[dict]:
    """The records of the steps in a metrics.jsonl that may be being written."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return [record for line in lines if line.endswith("\n") and (record := json.loads(line))["kind"] == "train"]


@check(30)
def resume(bench: Bench, figures: Figures) -> Limits:
    """The tiny recipe, 3 steps at once, or stopped after 2 and resumed: the weights, and what the last step moved."""
    precisions = {"fp32": "float32", "bf16": "bfloat16"}
    whole, again = ({name: bench.scratch / f"{name}-{kind}" for name in precisions} for kind in ("whole", "resumed"))

    def train(folders: dict[str, Path]) -> None:        # both precisions at a time: most of it is waiting for a start
        commands = [train_command(folder, f"model.dtype={precisions[name]}", "run.steps=3", "run.save_every=2")
                    for name, folder in folders.items()]
        logs = [folder.with_suffix(".log") for folder in folders.values()]
        for process, log in zip([started(*run) for run in zip(commands, logs)], logs):
            finish(process, log)

    train(whole)
    for name, folder in whole.items():
        shutil.copytree(folder, again[name])
        shutil.rmtree(again[name] / "checkpoints/step-000003")
        shutil.rmtree(again[name] / "final")
    train(again)
    for name, folder in whole.items():
        before, expected, found = (
            list(Transformer.from_pretrained(path / "policy").parameters())
            for path in (folder / "checkpoints/step-000002", folder / "checkpoints/step-000003",
                         again[name] / "checkpoints/step-000003"))
        off, moved = norm(a - b for a, b in zip(found, expected)), norm(a - b for a, b in zip(expected, before))
        figures |= {f"{name} weights": off / norm(expected), f"{name} of the step": off / moved}
    # without its moments a step would be another by its own size, and the weights by less than the 1e-3 of bf16
    return {"fp32 weights": 1e-6, "bf16 weights": 1e-3, "fp32 of the step": 0.1, "bf16 of the step": 0.1}


@check(15)
def gap(bench: Bench, figures: Figures) -> Limits:
    """Log-probs of the sampler against those of one pass over the whole rows, bfloat16, all layers, in nats.

    What bfloat16 costs by itself grows with depth and width, so both are judged by how far that pass is from float32.
    """
    P, G, prompt, new = bench.size((4, 4, 200, 256), (3, 2, 8, 24))
    with bench.gpu() as device:
        policy, prompts = bench.policy(device), bench.prompts(P, prompt)
        groups = Sampler(policy, SamplerConfig(G, new, TEMPERATURE), []).generate(prompts, G, (0,))
        passed_M = teacher_forced(policy, prompts, groups)
        exact_M = teacher_forced(converted(policy, torch.float32, device), prompts, groups)
    sampled_M = torch.tensor([logprob for completion in flat(groups) for logprob in completion.logprobs])
    gap_M, rounding = (passed_M - sampled_M).abs(), (passed_M - exact_M).abs().mean().item()
    figures |= {"mean": gap_M.mean().item(), "max": gap_M.max().item(), "mean rounding": rounding}
    figures |= {f"{name} over rounding": figures[name] / rounding for name in ("mean", "max")}
    return {"mean over rounding": 2.0, "max over rounding": 10.0}       # 1 and 5 if both round alike


@check(40)
def tiny_recipe(bench: Bench, figures: Figures) -> Limits:
    """The tiny recipe, stopped by a signal after 50 of its 200 steps: rewards against those of a CPU in tiny_runs/."""
    steps, last = bench.size((50, 10), (2, 2))
    folder, log = bench.scratch / "tiny", bench.scratch / "tiny.log"
    process, begun = started(train_command(folder), log), time.perf_counter()
    while process.poll() is None and time.perf_counter() - begun < 300:
        if len(train_records(folder / "metrics.jsonl")) >= steps:
            break
        time.sleep(0.2)
    process.terminate()
    finish(process, log, codes=(0, 128 + signal.SIGTERM))
    records = train_records(folder / "metrics.jsonl")[:steps]
    on_cpu = train_records(ROOT / "benchmarks/tiny_runs/tiny-seed0.metrics.jsonl")[:steps]
    ours, theirs = (float(np.mean([record["reward"] for record in each[-last:]])) for each in (records, on_cpu))
    figures |= {"reward": ours, "reward on a CPU": theirs, "off": abs(ours - theirs),
                "steps missing": steps - len(records), "gap": max(record["gap"] for record in records)}
    for part in ("sample_s", "reward_s", "update_s"):
        figures[part] = float(np.median([record[part] for record in records]))
    return {"off": 0.05, "gap": 1e-4, "steps missing": 0}


# ---------------------------------------------------------------------- speed and memory


@check(40)
def decode(bench: Bench, figures: Figures) -> None:
    """A decode step at contexts of 1,900 to 2,100 tokens: share of the bandwidth, kernels by time, cost of graphs."""
    prompt, short, middle, long = bench.size((1900, 8, 40, 200), (8, 4, 6, 24))
    bandwidth = bench.rates["bandwidth"]
    for P, G in bench.size(((8, 6), (16, 6), (16, 16)), ((3, 2),)):
        n, prompts, counts = P * G, bench.prompts(P, prompt), {}
        with bench.gpu() as device:
            bench.clear()
            policy = bench.policy(device, peaked=True)
            sampler = Sampler(policy, SamplerConfig(G, long, TEMPERATURE), [])

            def seconds(new: int) -> float:
                with forced_lengths([new] * n):
                    return bench.seconds(lambda: sampler.generate(prompts, G, (0,)))

            def kernels(new: int) -> dict[str, tuple[float, int]]:
                """Name -> microseconds, calls"""
                with profile(activities=[bench.size(ProfilerActivity.CUDA, ProfilerActivity.CPU)]) as profiled:
                    seconds(new)
                return {event.key: (event.self_device_time_total + event.self_cpu_time_total * bench.smoke, event.count)
                        for event in profiled.key_averages()}

            with counted(bench, counts):
                seconds(long)
            step_s = (seconds(long) - seconds(short)) / (long - short)      # prefill is in both
            cached = n * (prompt + (short + long) / 2) * 2 * policy.g.layers * policy.g.kv_heads * policy.g.head_dim
            read = 2 * (product_weights(policy) + cached)       # bytes of weights, keys and values
            figures[f"{n} rows"] = {"step_ms": step_s * 1e3, "tokens_per_s": n / step_s, "peak_GB": bench.peak_gb(),
                                    "bandwidth_share": read / bandwidth / step_s, **counts}
            bench.measured[f"{n} rows"] = step_s
            if P * G == bench.size(48, 6):
                more, less = kernels(middle), kernels(short)
                cost = {name: [(a - b) / (middle - short) for a, b in zip(of_more, less.get(name, (0.0, 0)))]
                        for name, of_more in more.items()}
                figures["kernels of a step, number"] = sum(calls for _, calls in cost.values())
                figures["kernels of a step"] = {name[:80]: {"all_us": us, "calls": calls} for name, (us, calls)
                                                in sorted(cost.items(), key=lambda item: -item[1][0])[:10]}
            del policy, sampler


@check(75)
def step(bench: Bench, figures: Figures) -> Limits:
    """Two steps of the paper's shape, lengths forced, with a reference: parts, and peaks against plan/memory.py."""
    P, G, prompt, cap = bench.size((8, 6, 200, 3584), (3, 2, 8, 24))
    lengths, prompts, rng = bench.lengths(), bench.prompts(P, prompt), np.random.default_rng(0)
    learner = bench.learner(cap)
    with bench.gpu() as device:
        rollout_model = Transformer.from_pretrained(bench.folder, torch.bfloat16, device)
        rollout_model.n_tokens = bench.n_tokens
        sampler = Sampler(rollout_model, SamplerConfig(G, cap, TEMPERATURE), [])
    # FLOP a token and weight: 2 in the reference, 2 forward, 4 backward; recomputation is not counted
    ideal_s = 8 * product_weights(rollout_model) * (sum(lengths) + P * G * prompt) / bench.rates["products"]
    for i in (1, 2):
        groups: list[list[Completion]] = []
        parts: Figures = {}
        with bench.gpu(), forced_lengths(lengths), counted(bench, parts):
            bench.clear()
            parts["rollout_s"] = bench.seconds(lambda: groups.extend(sampler.generate(prompts, G, (0, i))))
            parts["rollout_GB"] = bench.peak_gb()
        assert [len(completion.tokens) for completion in flat(groups)] == lengths, "lengths were forced"
        rows = [Row(prompts[row // G], completion, float(rng.normal())) for row, completion in enumerate(flat(groups))]
        bench.clear()
        parts["update_s"] = bench.seconds(lambda: parts.update(learner.update(rows, LR)))
        parts["update_GB"] = bench.peak_gb()
        with bench.gpu():
            parts["load_weights_s"] = bench.seconds(lambda: sampler.load_weights(full_weights(learner.policy)))
        figures[f"step {i}"] = {**parts, "tokens_per_s": sum(lengths) / parts["rollout_s"],
                                "products_share": ideal_s / parts["update_s"]}
        bench.measured["step"] = sum(parts[f"{part}_s"] for part in ("rollout", "update", "load_weights"))
    predicted = predicted_gb(rollout_model, prompts=P, group_size=G, prompt_tokens=prompt, max_new_tokens=cap)
    of_update = max(predicted[phase] for phase in UPDATE)
    figures |= {"tokens": sum(lengths), "plan/memory.py, GB": predicted,
                "rollout off": abs(parts["rollout_GB"] / predicted["sampling"] - 1),
                "update off": abs(parts["update_GB"] / of_update - 1)}
    return bench.size({"rollout off": 0.1, "update off": 0.1}, {})


@check(20)
def cudnn(bench: Bench, figures: Figures) -> None:
    """An update of three micro-batches without cuDNN's attention, as in a run, and with it: it plans for each shape."""
    prompt, cap, count = bench.size((200, 3584, 18), (2, 36, 6))
    learner, rows = bench.learner(cap), bench.rows(bench.lengths()[:count], prompt)
    for name, allowed in (("without, first", False), ("without", False), ("with, first", True), ("with", True)):
        torch.backends.cuda.enable_cudnn_sdp(allowed)
        try:
            figures[f"{name}_s"] = bench.seconds(lambda: learner.update(rows, LR))
        finally:
            torch.backends.cuda.enable_cudnn_sdp(False)


@check(10)
def head_speed(bench: Bench, figures: Figures) -> None:
    """The LM head alone, forward and backward, for an odd and an even vocabulary and three sizes of chunk."""
    M = bench.size(4096, 41)
    for V in bench.size((151665, 151936), (1003, 1024)):
        with bench.gpu() as device:
            policy = without_blocks(bench.policy(device, num_hidden_layers=1, vocab_size=V))
            policy.embed.requires_grad_(False)
            tokens_NT = torch.randint(0, policy.n_tokens, (1, M + 1), device=device)
            mask_NT = torch.arange(M + 1, device=device)[None] > 0

            def forward_and_backward() -> None:
                policy.token_logprobs(tokens_NT, mask_NT, TEMPERATURE)[0].sum().backward()
                policy.zero_grad()

            for power in (24, 26, 27):
                with chunks_of(2**power // bench.size(1, 2**12)):
                    forward_and_backward()
                    seconds = bench.seconds(forward_and_backward, 3)
                figures[f"V = {V}, 2^{power}_TFLOPs"] = 8 * M * policy.g.hidden * V / seconds / 1e12


@check(40)
def transformers_generate(bench: Bench, figures: Figures) -> None:
    """transformers' `generate` with the same policy and prompts: a step, and how many times ours that takes."""
    try:
        import transformers
    except ImportError:
        raise Skipped("transformers is not installed") from None
    P, G, prompt, short, long = bench.size((8, 6, 1900, 4, 128), (3, 2, 19, 2, 4))
    transformers.utils.logging.disable_progress_bar()
    policy = transformers.AutoModelForCausalLM.from_pretrained(bench.folder, dtype=torch.bfloat16)
    policy = policy.to(bench.rank_device).eval()
    ids_NT = torch.tensor([row for row in bench.prompts(P, prompt) for _ in range(G)], device=bench.rank_device)
    figures["transformers"] = transformers.__version__

    @torch.inference_mode()
    def seconds(cache: str, new: int) -> float:
        return bench.seconds(lambda: policy.generate(
            ids_NT, attention_mask=torch.ones_like(ids_NT), max_new_tokens=new, min_new_tokens=new, do_sample=True,
            temperature=TEMPERATURE, top_k=0, top_p=1.0, pad_token_id=0, cache_implementation=cache,
            disable_compile=True))

    for cache in ("static", "dynamic"):
        seconds(cache, short)
        step_s = (seconds(cache, long) - seconds(cache, short)) / (long - short)
        figures[f"{cache}_ms"] = step_s * 1e3
        if f"{P * G} rows" in bench.measured:
            figures[f"{cache}_ratio"] = step_s / bench.measured[f"{P * G} rows"]


@check(60)
def offload(bench: Bench, figures: Figures) -> Limits:
    """Two updates with weights and moments in host memory and 16 GB of the GPU: they run, and are those without."""
    lengths, prompt = bench.size(([1024] * 8, 200), ([10] * 8, 2))
    rows, weights, norms = bench.rows(lengths, prompt), [], []
    for name, share in (("plain", lambda total: 1.0), ("offload", lambda total: 16e9 / total)):
        bench.clear()
        with bench.memory_fraction(share):
            learner, updates = bench.learner(max(lengths), name == "offload"), []
            for i in (1, 2):
                figures[f"{name} {i}_s"] = bench.seconds(lambda: updates.append(learner.update(rows, LR)))
            figures[f"{name} peak_GB"] = bench.peak_gb()
            weights.append([tensor.cpu() for _, tensor in full_weights(learner.policy)])
            norms.append(updates[0]["grad_norm"])
            del learner
    figures |= {"weights": norm(a - b for a, b in zip(*weights)) / norm(weights[0]),
                "gradient norm": abs(norms[1] / norms[0] - 1)}
    return {"weights": 1e-5, "gradient norm": 1e-5, "offload peak_GB": 16.0}


@check(15)
def evaluation(bench: Bench, figures: Figures) -> Limits:
    """32,768 tokens allowed, rows end at about 300, two of them late: the cache grows, nothing is reserved for them."""
    P, G, prompt, new, slots = bench.size((24, 8, 100, 32768, 128), (4, 2, 8, 512, 4))
    lengths = np.random.default_rng(3).integers(*bench.size((200, 400), (4, 24)), P * G).tolist()
    lengths[:2] = [bench.size(1500, 100)] * 2
    room = first_columns(bench.size(sampler_module.FIRST_COLUMNS, 16))
    with bench.gpu() as device, forced_lengths(lengths), room, counted(bench, figures):
        bench.clear()
        sampler = Sampler(bench.policy(device, peaked=True), SamplerConfig(G, new, 0.6, slots), [], top_p=0.95)
        figures["rollout_s"] = bench.seconds(lambda: sampler.generate(bench.prompts(P, prompt), G, (0,)))
        figures |= {"tokens_per_s": sum(lengths) / figures["rollout_s"], "peak_GB": bench.peak_gb()}
    return {"peak_GB": 25.0}


@check(15)
def embedder(bench: Bench, figures: Figures) -> None:
    """DRA of a step with an embedder of the default's geometry: seconds, and the share of a step that has it."""
    try:
        import sentence_transformers  # noqa: F401
        import transformers
    except ImportError as error:
        raise Skipped(f"{error.name} is not installed") from None
    from embedder import Embedder
    from reward import adjust_rewards, cosine_similarity

    P, G, tokens = bench.size((8, 6, 2400), (3, 2, 24))
    # granite-embedding-small-english-r2
    hidden, intermediate, layers, heads = bench.size((384, 1536, 12, 12), (48, 64, 2, 4))
    tokenizer, folder = transformers.AutoTokenizer.from_pretrained(ROOT / "tiny/policy"), bench.scratch / "embedder"
    network = transformers.AutoModel.from_config(transformers.ModernBertConfig(
        vocab_size=50368, hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers,
        num_attention_heads=heads, pad_token_id=tokenizer.pad_token_id))
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    reader, rng = Embedder(str(folder), max_new_tokens=tokens, device=bench.rank_device), np.random.default_rng(0)
    texts = ["".join(map(str, rng.integers(0, 10, tokens))) for _ in range(P * G)]      # a digit is a token
    rewards_PG = torch.from_numpy(rng.random((P, G))).float()

    def adjust() -> None:
        for rewards_G, embeddings_GD in zip(rewards_PG, reader.encode(texts).unflatten(0, (P, G))):
            adjust_rewards(rewards_G, cosine_similarity(embeddings_GD))

    figures["first_s"], figures["dra_s"] = bench.seconds(adjust), bench.seconds(adjust)
    if "step" in bench.measured:
        figures["of the step_share"] = figures["dra_s"] / (figures["dra_s"] + bench.measured["step"])


MEMORY_KEYS = ("learner.micro_batch_tokens", "learner.offload", "model.activation_checkpointing", "sampler.slots",
               "sampler.max_new_tokens", "eval.slots", "eval.max_new_tokens")


def refusal(function: Callable[[], object]) -> tuple[str, bool]:
    """What `function` is refused with, and whether that is a ValueError that names a key for memory."""
    try:
        function()
    except (ValueError, torch.OutOfMemoryError) as error:
        named = isinstance(error, ValueError) and any(key in str(error) for key in MEMORY_KEYS)
        return f"{type(error).__name__}: {str(error)[:300]}", named
    return "not refused", False


@check(5)
def out_of_memory(bench: Bench, figures: Figures) -> Limits:
    """A tenth of the GPU allowed and a step that takes more; a full GPU without room for a row: keys are named."""
    with bench.gpu(stand_in_gb=0.02) as device:
        policy, total = bench.policy(device), torch.cuda.mem_get_info()[1]

        def run_out() -> None:
            handlers = [(signum, signal.getsignal(signum)) for signum in (signal.SIGINT, signal.SIGTERM)]
            stop = Stop("run.dir", LESS_MEMORY)
            for signum, handler in handlers:            # a Stop answers them, and this process is no run
                signal.signal(signum, handler)
            with redirect_stderr(io.StringIO()):
                with stop.interruptible("step 1"):
                    torch.empty(bench.size(total // 5, 2 * total), dtype=torch.uint8, device=device)
                stop.any_rank()

        def fill() -> None:
            free = torch.cuda.mem_get_info()[0]
            ballast = torch.empty(free - bench.size(500_000_000, 4_000_000), dtype=torch.uint8, device=device)
            Sampler(policy, SamplerConfig(2, 32768), []).generate(bench.prompts(1, 100), 2, (0,))
            del ballast

        with bench.memory_fraction(lambda total: 0.1):
            figures["in a step"], named_in_step = refusal(run_out)
        figures["on a full GPU"], named_when_full = refusal(fill)
    figures |= {"in a step, no key": int(not named_in_step), "on a full GPU, no key": int(not named_when_full)}
    return {"in a step, no key": 0, "on a full GPU, no key": 0}


# ---------------------------------------------------------------------- running them


def rounded(figure: object, smoke: bool, name: str = "") -> object:
    """Figures as they are written: 4 digits, "smoke" for a time in the smoke, text for what JSON has no number for."""
    if smoke and name.endswith(TIMES):
        return "smoke"
    if isinstance(figure, dict):
        return {key: rounded(value, smoke, key) for key, value in figure.items()}
    if isinstance(figure, (list, tuple)):
        return [rounded(value, smoke) for value in figure]
    if isinstance(figure, float):
        return float(f"{figure:.4g}") if math.isfinite(figure) else str(figure)
    return figure


def line_of(bench: Bench, check: Check) -> dict:
    """Runs a check; what its line says of it."""
    figures, found, start = {}, {}, time.perf_counter()
    try:
        limits = check.function(bench, figures) or {}
        passed = all(figures[name] <= limit for name, limit in limits.items())      # not so for nan
        found = {"ok": passed, "tolerance": limits}
    except Skipped as reason:
        found = {"ok": None, "skipped": str(reason)}
    except Exception as error:
        where = [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}: {frame.line}"
                 for frame in traceback.extract_tb(error.__traceback__)[-4:]]
        found = {"ok": False, "error": f"{type(error).__name__}: {error}"[:600], "where": where}
    return found | {"figures": rounded(figures, bench.smoke), "seconds": round(time.perf_counter() - start, 1)}


def commit() -> str | None:
    """The repository's commit, with "-dirty" if files have changed since."""
    try:
        command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip() or None
    except FileNotFoundError:                           # no git on this machine
        return None


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the checks in order and writes a line for each; returns 1 if one of them failed, 2 without a GPU."""
    begun = time.perf_counter()
    parser = argparse.ArgumentParser(description=__doc__, epilog="checks: " + ", ".join(CHECKS),
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=CHECKS, metavar="NAME", help="run this check; repeatable")
    parser.add_argument("--budget", type=float, default=520, help="seconds; what would not fit is skipped (520)")
    parser.add_argument("--out", type=Path, default=ROOT / "runs/gpu.jsonl", help="where lines are appended")
    parser.add_argument("--smoke", action="store_true", help="every line on a CPU, with tiny shapes")
    args = parser.parse_args(argv)
    if args.smoke:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""         # here and in the commands that are run
    elif not torch.cuda.is_available():
        print("error: torch.cuda.is_available() is False: this needs a GPU; --smoke runs it on a CPU", file=sys.stderr)
        return 2
    about = {"device": "smoke" if args.smoke else torch.cuda.get_device_name(0), "commit": commit(),
             "torch": torch.__version__}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    failed: set[str] = set()
    with tempfile.TemporaryDirectory() as scratch, open(args.out, "a", encoding="utf-8") as out:
        bench = Bench(args.smoke, Path(scratch))
        for name, check in CHECKS.items():
            if args.only and name not in args.only:
                continue
            if time.perf_counter() - begun + check.seconds > args.budget:
                line = {"ok": None, "skipped": f"{check.seconds:.0f} s more than the budget of {args.budget:.0f} s has"}
            else:
                line = line_of(bench, check)
            if line["ok"] is False:
                failed.add(name)
            if failed & {"ragged_op", "graphs"} and name in ("decode", "step", "cudnn"):
                line["note"] = "of a wrong sampler"
            for file in (out, sys.stdout):
                print(json.dumps({"check": name} | line | about), file=file, flush=True)
            bench.clear()
    return int(bool(failed))


if __name__ == "__main__":
    leave(main())                                       # a process group's threads outlive it
