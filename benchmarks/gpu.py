"""Is the program right on this GPU, and how fast? One command, one GPU, under 9 minutes, no network, no files but the repository's.

    python benchmarks/gpu.py [--only NAME ...] [--budget 520] [--out runs/gpu.jsonl]
    python benchmarks/gpu.py --smoke                    # every line of it on a CPU, in under 2 minutes

Correctness first (ragged_op to tiny_recipe), then speed and memory at the geometry of DeepSeek-R1-Distill-Qwen-1.5B with random weights, which
are made on the device from a seed. Every result is printed and appended to the output file at once, as one JSON line:

    check, ok (null if skipped), figures, tolerance (the largest value of each figure that passes), seconds, device, commit, torch

A check that raises is a failed line with the end of its traceback, and the others go on. What would not fit into --budget seconds any
more is a skipped line. Exit code 1 if a check failed. Figures are named by their units; a share is of the bandwidth (copy of 2 GB) or of
the product rate (8,192^3 in bfloat16) measured in the same run.

--smoke runs the sampler on the tests' stand-in for a GPU and all else on the CPU, with tiny shapes. Tolerances are the same but for memory,
which is not limited, and times say "smoke": they mean nothing there.
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

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))                           # before this folder, whose sampler.py is another one

import memory  # noqa: E402
import model as model_module  # noqa: E402
import sampler as sampler_module  # noqa: E402
from dra_grpo import Learner, LearnerConfig, Row  # noqa: E402
from model import ModelConfig, Transformer, rope_frequencies  # noqa: E402
from ranks import Stop, full_weights, leave, start_ranks  # noqa: E402
from sampler import Completion, Sampler, SamplerConfig, sample_tokens  # noqa: E402

# P prompts, G completions each, n rows, S slots, T tokens, H query heads, K key/value heads, D head size, C hidden size, V vocabulary

GEOMETRY = ROOT / "benchmarks/r1_distill_qwen_1_5b/config.json"
SMALL = dict(num_hidden_layers=2, hidden_size=64, intermediate_size=128, num_attention_heads=4, num_key_value_heads=2, vocab_size=1024)
CUDA = torch.device("cuda", 0)
TEMPERATURE, LR = 0.7, 1e-6                             # of the recipe
TIMES = ("_s", "_ms", "_us", "_TBps", "_TFLOPs", "_share", "_ratio")        # ends of figures that are times or made of them

Figures = dict[str, object]
Limits = dict[str, float]


class Skipped(Exception):
    """Raised by a check that cannot run here, with the reason."""


@dataclass(frozen=True)
class Check:
    seconds: float
    """expected on an H100"""
    function: Callable[["Bench", Figures], Limits | None]
    """adds its figures one after the other, so that they are kept if it fails, and returns the largest values that pass"""


CHECKS: dict[str, Check] = {}


def check(seconds: float):
    """Registers a check that is expected to take so many seconds on an H100; they run in the order in which they stand here."""
    def register(function: Callable) -> Callable:
        CHECKS[function.__name__] = Check(seconds, function)
        return function
    return register


class Bench:
    """What the checks share: the device, the sizes, what was measured before, and files that are made once."""

    def __init__(self, smoke: bool, scratch: Path):
        self.smoke, self.scratch = smoke, scratch
        self.measured: dict[str, float] = {}            # between checks: "48 rows ms", "step s"
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
        return start_ranks("bfloat16")[2]

    def synchronize(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    def seconds(self, function: Callable[[], object], rounds: int = 1) -> float:
        """Mean of `rounds` calls, after nothing else is running on the device."""
        self.synchronize()
        start = time.perf_counter()
        for _ in range(rounds):
            function()
        self.synchronize()
        return (time.perf_counter() - start) / rounds

    def clear(self) -> None:
        """Nothing of what ran before stays on the device, and peaks count from here."""
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak_gb(self) -> float:
        """Most GB allocated on the device since `clear`; 0 on the plain CPU of the smoke."""
        return torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else 0.0

    @cached_property
    def rates(self) -> dict[str, float]:
        """Bytes a second of a copy (read and written) and FLOP a second of a product in bfloat16, measured now."""
        device = self.rank_device
        source = torch.empty(self.size(2**31, 2**20), dtype=torch.uint8, device=device)
        target, N = torch.empty_like(source), self.size(8192, 64)
        left, right = (torch.randn(N, N, device=device, dtype=torch.bfloat16) for _ in "ab")
        found = {}
        for name, work, function in (("bandwidth", 2 * source.nbytes, lambda: target.copy_(source)), ("products", 2 * N**3, lambda: left @ right)):
            self.seconds(function, 3)
            found[name] = work / self.seconds(function, 10)
        return found

    @property
    def n_tokens(self) -> int:
        """Ids of the tokenizer; the matrices have more rows, as the policy's have."""
        return self.size(151665, 1003)

    def config(self, **changes) -> dict:
        return json.loads(GEOMETRY.read_text()) | (SMALL if self.smoke else {}) | changes

    def policy(self, device: torch.device, dtype: torch.dtype = torch.bfloat16, seed: int = 0, peaked: bool = False, **changes) -> Transformer:
        """Random weights of std 0.02, made on the device; the next token is near uniform or, if `peaked`, has an entropy of about 1 nat.

        V Gaussian logits have that if their std is sqrt(2 ln V) / 0.45 (random energy model; tried for V = 1,003 and 151,665). But they reach 58,
        where numbers in bfloat16 are 0.25 apart, as a trained policy's do not: for speed, not for differences in bfloat16.
        """
        policy = without_values(self.config(**changes), dtype, device)
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
        return Learner(ModelConfig(self.folder, "bfloat16", activation_checkpointing=True), LearnerConfig(kl_beta=0.04, lr=LR, offload=offload), self.folder,
                       device, self.n_tokens, TEMPERATURE, max_new_tokens)

    def prompts(self, count: int, tokens: int) -> list[list[int]]:
        return np.random.default_rng(1).integers(0, self.n_tokens, (count, tokens)).tolist()

    def rows(self, lengths: Sequence[int], prompt_tokens: int) -> list[Row]:
        """Random rows for an update; the sampler's log-probs are made up, and nothing but the figure `gap` depends on them."""
        rng = np.random.default_rng(2)
        return [(rng.integers(0, self.n_tokens, prompt_tokens).tolist(), Completion(rng.integers(0, self.n_tokens, n).tolist(), [-1.0] * n, "stop"), float(rng.normal()))
                for n in lengths]

    def lengths(self) -> list[int]:
        """Of the 48 completions of a step: lognormal with a mean of 2,417, a fifth of them cut at 3,584, as the published runs begin."""
        n, median, cap = self.size((48, 2300, 3584), (6, 12, 24))
        return np.random.default_rng(0).lognormal(math.log(median), 0.55, n).clip(2, cap).astype(int).tolist()


@contextmanager
def memory_fraction(bench: Bench, share: Callable[[int], float]) -> Iterator[None]:
    """Inside, this process may hold share(bytes of the GPU) of the GPU; the smoke has no such limit."""
    if not bench.smoke:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, share(total)))
    try:
        yield
    finally:
        bench.clear()
        if not bench.smoke:
            torch.cuda.set_per_process_memory_fraction(1.0)


# ------------------------------------------------------------------------------------------------ the few places that know the sampler's internals


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
    """Inside, a step is made kernel after kernel, by the same kernels over the same memory, where a graph would be replayed."""
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
        torch.cuda.empty_cache()                        # as a capture does first: else what it frees would be subtracted
        reserved, start = torch.cuda.memory_reserved(), time.perf_counter()
        with capture(*arguments, **options):
            yield
        figures["captures"] += 1
        figures["captures_s"] += time.perf_counter() - start
        figures["captures_GB"] += (torch.cuda.memory_reserved() - reserved) / 1e9

    def counted_resize(slots, *arguments):
        figures["moves"] += 1
        figures["moves_s"] += bench.seconds(lambda: resize(slots, *arguments))

    with patch.object(torch.cuda, "graph", counted_capture), patch.object(sampler_module.Slots, "resize", counted_resize):
        yield


def predicted_gb(policy: Transformer, **settings) -> dict[str, float]:
    """memory.py's peaks of the phases of a step, in GB."""
    found = memory.parts(policy, dtype=torch.bfloat16, card=True, world=1, micro_batch_tokens=LearnerConfig.micro_batch_tokens, reference=True, offload=False,
                         checkpointing=True, **settings)
    return {phase: size / 1e9 for phase, size in memory.peaks(found).items()}


def uniform(seed: Sequence[int], position: int, completion: int, token: int) -> float:
    """The number from which the sampler draws a token."""
    return np.random.default_rng((*seed, position, completion)).random(token + 1)[token]


# ------------------------------------------------------------------------------------------------ comparisons


def distance(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what is expected; the one form in which tensors are compared here."""
    found, expected = (x.detach().to("cpu", torch.float64) for x in (found, expected))
    return ((found - expected).norm() / expected.norm()).item()


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


def teacher_forced(policy: Transformer, prompts: list[list[int]], groups: list[list[Completion]], temperature: float) -> tuple[float, float]:
    """Mean and largest distance between the sampler's log-probs and those of one pass over the whole rows, in nats."""
    rows = [(prompt, completion) for prompt, group in zip(prompts, groups) for completion in group]
    shape = len(rows), max(len(prompt) + len(completion.tokens) for prompt, completion in rows)
    tokens_NT, mask_NT, sampled_NT = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.bool), torch.zeros(shape)
    for i, (prompt, completion) in enumerate(rows):
        end = len(prompt) + len(completion.tokens)
        tokens_NT[i, :end] = torch.tensor(prompt + completion.tokens)
        mask_NT[i, len(prompt) : end] = True
        sampled_NT[i, len(prompt) : end] = torch.tensor(completion.logprobs)
    device = policy.norm.weight.device
    with torch.no_grad():
        logp_NT = policy.token_logprobs(tokens_NT.to(device), mask_NT.to(device), temperature)[0].cpu()
    gap = (logp_NT - sampled_NT).abs()[mask_NT]
    return gap.mean().item(), gap.max().item()


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


def norm(tensors: Iterable[Tensor]) -> float:
    """Euclidean norm of all of them together."""
    return math.sqrt(sum(tensor.double().square().sum().item() for tensor in tensors))


# ------------------------------------------------------------------------------------------------ correctness


@check(8)
def machine(bench: Bench, figures: Figures) -> None:
    """What runs here, and the denominators of all shares."""
    figures |= {"bandwidth_TBps": bench.rates["bandwidth"] / 1e12, "products_TFLOPs": bench.rates["products"] / 1e12, "python": sys.version.split()[0],
                "cudnn": torch.backends.cudnn.version(), "cuda": torch.version.cuda}
    figures |= {f"{name}_attention": getattr(torch.backends.cuda, f"{name}_sdp_enabled")() for name in ("flash", "cudnn", "mem_efficient", "math")}
    if not bench.smoke:
        properties = torch.cuda.get_device_properties(0)
        query = subprocess.run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True, text=True)
        figures |= {"memory_GB": properties.total_memory / 1e9, "capability": f"{properties.major}.{properties.minor}", "driver": query.stdout.strip()}


@check(6)
def ragged_op(bench: Bench, figures: Figures) -> Limits:
    """torch's ragged attention, one query a row, against float32; what stands after a row's last token is nan; max_k exact and at capacity."""
    H, K, D = bench.size((12, 2, 128), (4, 2, 16))
    for n in bench.size((1, 5, 48), (1, 5)):
        for T in bench.size((192, 4096), (192, 256)):
            with bench.gpu() as device:
                torch.manual_seed(n + T)
                q_nHD, keys_nTKD, values_nTKD = (torch.randn(*shape, D, device=device, dtype=torch.bfloat16) for shape in ((n, H), (n, T, K), (n, T, K)))
                used_n = torch.randint(1, T, (n,), device=device)
                unused_nT = torch.arange(T, device=device) >= used_n[:, None]
                q, keys, values = (x.float() for x in (q_nHD, keys_nTKD, values_nTKD))
                scores_nHT = torch.einsum("nhd,nthd->nht", q, keys.repeat_interleave(H // K, 2)) / D**0.5
                expected_nHD = torch.einsum("nht,nthd->nhd", scores_nHT.masked_fill(unused_nT[:, None], -math.inf).softmax(-1), values.repeat_interleave(H // K, 2))
                for x in (keys_nTKD, values_nTKD):
                    x.masked_fill_(unused_nT[..., None, None], math.nan)
                starts = torch.arange(n + 1, device=device, dtype=torch.int32)
                for name, max_k in (("exact", int(used_n.max())), ("capacity", T)):
                    found_nHD = torch.ops.aten._flash_attention_forward(
                        q_nHD, keys_nTKD.view(n * T, K, D), values_nTKD.view(n * T, K, D), starts, starts * T, 1, max_k, 0.0, False, False, seqused_k=used_n.int())[0]
                    figures[f"n={n} T={T} {name}"] = distance(found_nHD, expected_nHD)
    return dict.fromkeys(figures, 4e-3)


@check(10)
def logits(bench: Bench, figures: Figures) -> Limits:
    """Logits on the GPU: float32 against the CPU's, bfloat16 at the real width against float32."""
    N, T = bench.size((4, 256), (3, 24))
    tokens_NT = torch.randint(0, bench.n_tokens, (N, T), generator=torch.Generator().manual_seed(0))
    narrow = bench.size(dict(num_hidden_layers=4, hidden_size=256, intermediate_size=1024, num_attention_heads=4), {})
    with torch.no_grad(), bench.gpu() as device:
        policy = bench.policy(device, torch.float32, **narrow)
        found_NTV, expected_NTV = policy(tokens_NT.to(device)), converted(policy, torch.float32, "cpu")(tokens_NT)
        figures["fp32 largest"] = ((found_NTV.cpu() - expected_NTV).abs().max() / expected_NTV.std()).item()
        policy = bench.policy(device, torch.bfloat16, num_hidden_layers=bench.size(4, 2))
        figures["bf16 rms"] = distance(policy(tokens_NT.to(device)), converted(policy, torch.float32, device)(tokens_NT.to(device)))
    return {"fp32 largest": 1e-4, "bf16 rms": 2e-2}


@check(10)
def logprobs(bench: Bench, figures: Figures) -> Limits:
    """Log-probs, entropies and gradients against float64 on the CPU, ragged masks, temperature 0.7."""
    N, T = bench.size((3, 128), (3, 24))
    shape = bench.size(dict(num_hidden_layers=2, hidden_size=256, intermediate_size=1024, num_attention_heads=4, vocab_size=4096), {})
    generator = torch.Generator().manual_seed(0)
    tokens_NT = torch.randint(0, 1000, (N, T), generator=generator)
    mask_NT = (torch.arange(T) >= T // 3) & (torch.arange(T) < torch.tensor([T, T - T // 4, T - 1])[:, None])
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        with bench.gpu() as device:
            policy = bench.policy(device, dtype, **shape)
            exact = converted(policy, torch.float64, "cpu")
            outputs = {"logp": policy.token_logprobs(tokens_NT.to(device), mask_NT.to(device), TEMPERATURE), "exact": exact.token_logprobs(tokens_NT, mask_NT, TEMPERATURE)}
            for logp_NT, _ in outputs.values():
                (logp_NT * torch.linspace(-1, 1, T, device=logp_NT.device)).sum().backward()
            for i, figure in enumerate(("logp", "entropy")):
                figures[f"{name} {figure}"] = distance(outputs["logp"][i], outputs["exact"][i])
            figures[f"{name} gradient"] = max(distance(found.grad, expected.grad) for found, expected in zip(policy.parameters(), exact.parameters()))
    return {name: 1e-5 if name.startswith("fp32") else 3e-2 for name in figures}


@check(6)
def lm_head(bench: Bench, figures: Figures) -> Limits:
    """The chunked LM head over masked positions against one dense product: log-probs in float32, the matrix's gradient in bfloat16 against float32."""
    N, T = bench.size((4, 501), (3, 25))
    for name, dtype in (("fp32 logp", torch.float32), ("bf16 dW", torch.bfloat16)):
        with bench.gpu() as device:
            policy = bench.policy(device, dtype, peaked=dtype == torch.float32, num_hidden_layers=0)     # the head alone, over normalised embeddings
            tokens_NT = torch.randint(0, policy.n_tokens, (N, T), device=device)
            mask_NT = torch.ones_like(tokens_NT, dtype=torch.bool)
            mask_NT[:, 0] = False
            with chunks_of(policy.n_tokens * bench.size(110, 7)):
                logp_NT, _ = policy.token_logprobs(tokens_NT, mask_NT, TEMPERATURE)
                weight_NT = torch.linspace(-1, 1, T, device=device).expand(N, T)
                (logp_NT * weight_NT).sum().backward()
            with torch.no_grad():
                hidden_MC = policy.hidden(tokens_NT)[:, :-1].flatten(0, 1).float()
            dense_VC = policy.head_weight.detach()[: policy.n_tokens].float().requires_grad_()
            dense_M = F.cross_entropy(hidden_MC @ dense_VC.t() / TEMPERATURE, tokens_NT[:, 1:].flatten(), reduction="none").neg()
            (dense_M * weight_NT[:, 1:].flatten()).sum().backward()
            if dtype == torch.float32:
                figures[name] = distance(logp_NT[:, 1:].flatten(), dense_M)
            else:
                figures[name] = distance(policy.head_weight.grad[: policy.n_tokens], dense_VC.grad)
                figures["gradient of padding rows"] = policy.head_weight.grad[policy.n_tokens :].abs().max().item()
    return {"fp32 logp": 1e-5, "bf16 dW": 6e-3, "gradient of padding rows": 0.0}


@check(10)
def sampler_fp32(bench: Bench, figures: Figures) -> Limits:
    """Graphs against the CPU in float32 on the tiny policy, with stops and refilled slots; tokens may differ only where a draw is at a boundary."""
    P, G, slots, new = bench.size((8, 8, 16, 62), (3, 2, 4, 24))
    prompts, seed, stops = [[5 + i, 6, 7, 8 + i, 9][: 3 + i % 3] for i in range(P)], (0, 1), [0, 1, 2]
    results = []
    for place in (bench.gpu, nullcontext):
        with place() as device:
            policy = Transformer.from_pretrained(ROOT / "tiny/policy", torch.float32, device or "cpu")
            results.append(Sampler(policy, SamplerConfig(G, new, slots=slots), stops).generate(prompts, G, seed))
    found, expected = results
    exact, worst, compared = Transformer.from_pretrained(ROOT / "tiny/policy", torch.float64), 0.0, 0
    places = first_differences(found, expected)
    for row, completion in enumerate(flat(expected)):
        compared += places.get(row, len(completion.tokens) - 1) + 1
    for row, i in places.items():
        with torch.no_grad():
            cumulative_V = exact(torch.tensor([prompts[row // G] + flat(expected)[row].tokens[:i]]))[0, -1].softmax(-1).cumsum(-1)
        worst = max(worst, (cumulative_V - uniform(seed, row // G, row % G, i)).abs().min().item())
    figures |= {"rows": P * G, "rows that differ": len(places), "tokens that differ, of those before": len(places) / compared, "from a boundary": worst}
    return {"tokens that differ, of those before": 1e-3, "from a boundary": 1e-6}


@check(15)
def graphs(bench: Bench, figures: Figures) -> Limits:
    """Graphs against eager steps in bfloat16 with the ragged kernel: a growing cache, buckets, refill, new weights, a call repeated. Bit for bit."""
    stops, few, G, layers = range(0, bench.n_tokens, bench.size(200, 33)), bench.size(6, 3), bench.size(8, 4), bench.size(4, 2)
    # name: (lengths of prompts, completions of each, new tokens, slots); of the last three the longest row ends just below a multiple of 64
    cases = {"growing": ([10 + 8 * i for i in range(few)], G, bench.size(450, 42), 0), "refill": ([40 + 11 * i for i in range(few)], G, bench.size(130, 24), bench.size(16, 4)),
             "slots 0": ([62, 60, 55], 3, 66, 0), "slots 4": ([62, 20, 62], 3, 66, 4), "slots 5": ([62, 61, 62], 3, 66, 5)}
    limits: Limits = {}
    for name, (lengths, G, new, slots) in cases.items():
        prompts, results, counts = [row[:n] for row, n in zip(bench.prompts(len(lengths), max(lengths)), lengths)], [], []
        with bench.gpu() as device, first_columns(0):
            for mode in (nullcontext, eager):
                sampler = Sampler(bench.policy(device, num_hidden_layers=layers), SamplerConfig(G, new, slots=slots), stops)
                for seed in (0, 1):
                    sampler.load_weights(bench.policy(device, seed=seed, num_hidden_layers=layers).named_parameters())
                    counts.append({})
                    with mode(), counted(bench, counts[-1]):
                        results.append(sampler.generate(prompts, G, (3, 4)))
                if mode == nullcontext:
                    with counted(bench, again := {}):
                        repeated = sampler.generate(prompts, G, (3, 4))
        first, second, *expected = results
        figures[name] = {"tokens": sum(len(completion.tokens) for completion in flat(first)),
                         "captures": counts[0]["captures"], "moves of the cache": counts[0]["moves"],
                         "first differences": [list(first_differences(*pair).items())[:4] for pair in zip(results, expected)]}
        for figure, wrong in (("not the same", results[:2] != expected), ("new weights not used", second == first),
                              ("repeated call not the same", repeated != second), ("repeated call captures", again["captures"])):
            limits[figure] = 0
            figures[figure] = figures.get(figure, 0) + int(wrong)
    return limits


@check(5)
def draw(bench: Bench, figures: Figures) -> Limits:
    """1e5 draws, a tenth of them of a nucleus, against sorted probabilities in float64; different only where the draw is at a boundary."""
    draws, V = bench.size((1000, 151665), (100, 1003))
    for top_p, count in ((1.0, bench.size(90, 9)), (0.95, bench.size(10, 1))):
        worst, differ = 0.0, 0
        for i in range(count):
            with bench.gpu() as device:
                torch.manual_seed(i)
                logits_V = torch.randn(V, device=device, dtype=torch.float64) * math.sqrt(2 * math.log(V)) / (0.45, 0.9)[i % 2]
                uniform_n = torch.rand(draws, device=device, dtype=torch.float64)
                found_n, logp_n = sample_tokens(logits_V.expand(draws, V), uniform_n, 1.0, top_p)
                p_V, order_V = logits_V.softmax(-1).sort(descending=True)
                inside_V = p_V.cumsum(-1) - p_V < top_p         # what stands before a token has not reached the mass yet
                kept_V = torch.zeros_like(p_V).scatter(-1, order_V, p_V * inside_V)
                cumulative_V = kept_V.cumsum(-1) / kept_V.sum()
                expected_n = torch.searchsorted(cumulative_V, uniform_n, right=True)
                figures["logp"] = max(figures.get("logp", 0.0), (logp_n - logits_V.log_softmax(-1)[found_n]).abs().max().item())
                wrong_n = found_n != expected_n
                differ += int(wrong_n.sum())
                if wrong_n.any():
                    worst = max(worst, (cumulative_V - uniform_n[wrong_n][:, None]).abs().amin(-1).max().item())
        figures |= {f"top-p {top_p}: differ": differ, f"top-p {top_p}: from a boundary": worst}
    return {"logp": 1e-9, "top-p 1.0: from a boundary": 1e-9, "top-p 0.95: from a boundary": 1e-9}


def train_command(run_dir: Path, *overrides: str) -> list[str]:
    return [sys.executable, "dra_grpo.py", "--config", "configs/tiny.toml", "eval.benchmarks=[]", f"run.dir={run_dir}", *overrides]


def started(command: list[str], log: Path) -> subprocess.Popen:
    with open(log, "a") as file:
        return subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, "HF_HUB_OFFLINE": "1"})


def finished(process: subprocess.Popen, log: Path, codes: Sequence[int] = (0,), timeout: float = 120) -> None:
    """Waits for a command; RuntimeError with its last lines if it failed."""
    try:
        code = process.wait(timeout)
    finally:
        process.kill()
    if code not in codes:
        raise RuntimeError(f"exit code {code}: {log.read_text()[-600:]}")


def json_records(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


@check(30)
def resume(bench: Bench, figures: Figures) -> Limits:
    """The tiny recipe, 3 steps at once, or stopped after 2 and resumed: the weights, and what the last step moved. Both precisions side by side."""
    precisions = {"fp32": "float32", "bf16": "bfloat16"}
    whole, again = ({name: bench.scratch / f"{name}-{kind}" for name in precisions} for kind in ("whole", "resumed"))

    def train(folders: dict[str, Path]) -> None:
        runs = [started(train_command(folder, f"model.dtype={precisions[name]}", "run.steps=3", "run.save_every=2"), folder.with_suffix(".log"))
                for name, folder in folders.items()]
        for process, folder in zip(runs, folders.values()):
            finished(process, folder.with_suffix(".log"))

    train(whole)
    for name, folder in whole.items():
        shutil.copytree(folder, again[name])
        shutil.rmtree(again[name] / "checkpoints/step-000003")
        shutil.rmtree(again[name] / "final")
    train(again)
    for name, folder in whole.items():
        before, expected, found = (list(Transformer.from_pretrained(path / "policy").parameters()) for path in (
            folder / "checkpoints/step-000002", folder / "checkpoints/step-000003", again[name] / "checkpoints/step-000003"))
        off = norm(a - b for a, b in zip(found, expected))
        figures |= {f"{name} weights": off / norm(expected), f"{name} of the step": off / norm(a - b for a, b in zip(expected, before))}
    # moments that were lost change a step by its own size, and the weights by less than the specified 1e-3
    return {"fp32 weights": 1e-6, "bf16 weights": 1e-3, "fp32 of the step": 0.1, "bf16 of the step": 0.1}


@check(15)
def gap(bench: Bench, figures: Figures) -> Limits:
    """Log-probs of the sampler against those of one pass over the whole rows, bfloat16, all layers."""
    P, G, prompt, new = bench.size((4, 4, 200, 256), (3, 2, 8, 24))
    with bench.gpu() as device:
        policy, prompts = bench.policy(device), bench.prompts(P, prompt)
        groups = Sampler(policy, SamplerConfig(G, new, TEMPERATURE), []).generate(prompts, G, (0,))
        figures["mean"], figures["max"] = teacher_forced(policy, prompts, groups, TEMPERATURE)
    return {"mean": 5e-3, "max": 0.1}


@check(40)
def tiny_recipe(bench: Bench, figures: Figures) -> Limits:
    """The tiny recipe as it is, stopped by a signal after 50 of its 200 steps: rewards against those of a CPU in tiny_runs/."""
    steps, last, folder = *bench.size((50, 10), (2, 2)), bench.scratch / "tiny"
    log, metrics = folder.with_suffix(".log"), folder / "metrics.jsonl"
    process, start = started(train_command(folder), log), time.perf_counter()
    while process.poll() is None and sum(record["kind"] == "train" for record in json_records(metrics)) < steps and time.perf_counter() - start < 100:
        time.sleep(0.2)
    process.terminate()
    finished(process, log, codes=(0, 128 + 15))
    rewards = []
    for path in (metrics, ROOT / "benchmarks/tiny_runs/tiny-seed0.metrics.jsonl"):
        records = [record for record in json_records(path) if record["kind"] == "train"][:steps]
        rewards.append(np.mean([record["reward"] for record in records[-last:]]))
        if len(rewards) == 1:
            figures |= {"steps": len(records), "gap": max(record["gap"] for record in records)}
            figures |= {key: float(np.median([record[key] for record in records])) for key in ("sample_s", "reward_s", "update_s")}
    figures |= {"reward": rewards[0], "reward of the CPU": rewards[1], "off": abs(rewards[0] - rewards[1])}
    return {"off": 0.05, "gap": 1e-4}


# ------------------------------------------------------------------------------------------------ speed and memory


def decode_bytes(policy: Transformer, n: int, context: float) -> float:
    """What a decode step of `n` rows has to read: weights, keys and values, once."""
    g = policy.g
    weights = sum(p.numel() for name, p in policy.named_parameters() if not name.startswith("embed"))
    return 2 * (weights + n * context * 2 * g.layers * g.kv_heads * g.head_dim)


@check(40)
def decode(bench: Bench, figures: Figures) -> None:
    """A decode step at contexts of 1,900 to 2,100 tokens: its share of the bandwidth, its most expensive kernels, and what the graphs cost."""
    prompt, short, long = bench.size((1900, 8, 200), (8, 4, 24))
    bandwidth = bench.rates["bandwidth"]
    activity = torch.profiler.ProfilerActivity.CPU if bench.smoke else torch.profiler.ProfilerActivity.CUDA
    for P, G in bench.size(((8, 6), (16, 6), (16, 16)), ((3, 2),)):
        n, prompts, counts = P * G, bench.prompts(P, prompt), {}
        with bench.gpu() as device:
            bench.clear()
            policy = bench.policy(device, peaked=True)
            sampler = Sampler(policy, SamplerConfig(G, long, TEMPERATURE), [])

            def seconds(new: int) -> float:
                with forced_lengths([new] * n):
                    return bench.seconds(lambda: sampler.generate(prompts, G, (0,)))

            with counted(bench, counts):
                seconds(long)
            step_s = (seconds(long) - seconds(short)) / (long - short)
            figures[f"{n} rows"] = {"step_ms": step_s * 1e3, "tokens_per_s": n / step_s, "peak_GB": bench.peak_gb(), **counts,
                                    "bandwidth_share": decode_bytes(policy, n, prompt + (long + short) / 2) / bandwidth / step_s}
            bench.measured[f"{n} rows"] = step_s
            if n == bench.size(48, 6):
                with torch.profiler.profile(activities=[activity]) as profile:
                    seconds(short)
                events = sorted(profile.key_averages(), key=lambda event: event.self_device_time_total or event.self_cpu_time_total)[:-11:-1]
                figures[f"ten most expensive kernels of {short} tokens"] = {
                    event.key[:80]: {"all_ms": (event.self_device_time_total or event.self_cpu_time_total) / 1e3, "number": event.count} for event in events}
            del policy, sampler


@check(75)
def step(bench: Bench, figures: Figures) -> Limits:
    """Two steps of the paper's shape: rollouts of forced lengths and updates on them with a reference, by parts, with peaks against memory.py."""
    P, G, prompt, cap = bench.size((8, 6, 200, 3584), (3, 2, 8, 24))
    lengths, prompts, rng = bench.lengths(), bench.prompts(P, prompt), np.random.default_rng(0)
    learner = bench.learner(cap)
    with bench.gpu() as device:
        actor = Transformer.from_pretrained(bench.folder, torch.bfloat16, device)
        actor.n_tokens = bench.n_tokens
        sampler = Sampler(actor, SamplerConfig(G, cap, TEMPERATURE), [])
    predicted = predicted_gb(actor, rows=P * G, slots=P * G, prompt_tokens=prompt, max_new_tokens=cap)
    # FLOP: 2 a parameter and token in the reference, 2 forward, 4 backward; recomputation is not counted
    ideal_s = 8 * sum(p.numel() for p in actor.parameters()) * (sum(lengths) + P * G * prompt) / bench.rates["products"]
    for i in (1, 2):
        groups: list[list[Completion]] = []
        parts: Figures = {}
        with bench.gpu(), forced_lengths(lengths), counted(bench, parts):
            bench.clear()
            parts["rollout_s"] = bench.seconds(lambda: groups.extend(sampler.generate(prompts, G, (0, i))))
            parts["rollout_GB"] = bench.peak_gb()
        assert [len(completion.tokens) for completion in flat(groups)] == lengths, "the lengths are not those that were forced"
        rows = [(prompts[row // G], completion, float(rng.normal())) for row, completion in enumerate(flat(groups))]
        bench.clear()
        parts["update_s"] = bench.seconds(lambda: parts.update(learner.update(rows, LR)))
        parts["update_GB"] = bench.peak_gb()
        with bench.gpu():
            parts["load_weights_s"] = bench.seconds(lambda: sampler.load_weights(full_weights(learner.policy)))
        figures[f"step {i}"] = {**parts, "tokens_per_s": sum(lengths) / parts["rollout_s"], "products_share": ideal_s / parts["update_s"]}
        bench.measured["step"] = sum(parts[f"{part}_s"] for part in ("rollout", "update", "load_weights"))
    figures |= {"tokens": sum(lengths), "memory.py, GB": predicted}
    figures["rollout off"] = abs(parts["rollout_GB"] / predicted["sampling"] - 1)
    figures["update off"] = abs(parts["update_GB"] / max(size for phase, size in predicted.items() if phase != "sampling") - 1)
    return bench.size({"rollout off": 0.1, "update off": 0.1}, {})


@check(25)
def cudnn(bench: Bench, figures: Figures) -> None:
    """An update of three micro-batches with cuDNN's attention off, as in a run, and allowed: it builds a plan for every new shape."""
    prompt, cap = bench.size((200, 3584), (2, 36))
    learner = bench.learner(cap)
    lengths = bench.lengths()[: bench.size(18, 6)]
    for name, allowed in (("off, first", False), ("off", False), ("allowed, first", True), ("allowed", True)):
        torch.backends.cuda.enable_cudnn_sdp(allowed)
        try:
            figures[f"{name}_s"] = bench.seconds(lambda: learner.update(bench.rows(lengths, prompt), LR))
        finally:
            torch.backends.cuda.enable_cudnn_sdp(False)


@check(10)
def head_speed(bench: Bench, figures: Figures) -> None:
    """The LM head alone, forward and backward, for two vocabularies and three sizes of chunk."""
    M = bench.size(4096, 41)
    for V in bench.size((151665, 151936), (1003, 1024)):
        with bench.gpu() as device:
            policy = bench.policy(device, num_hidden_layers=0, vocab_size=V)
            policy.embed.requires_grad_(False)
            tokens_NT = torch.randint(0, policy.n_tokens, (1, M + 1), device=device)
            mask_NT = torch.arange(M + 1, device=device)[None] > 0

            def forward_and_backward() -> None:
                policy.token_logprobs(tokens_NT, mask_NT, TEMPERATURE)[0].sum().backward()
                policy.zero_grad()

            for power in (24, 26, 27):
                with chunks_of(2**power // bench.size(1, 2**12)):
                    bench.seconds(forward_and_backward)
                    figures[f"V = {V}, 2^{power}_TFLOPs"] = 8 * M * policy.g.hidden * V / bench.seconds(forward_and_backward, 3) / 1e12


@check(40)
def transformers_generate(bench: Bench, figures: Figures) -> None:
    """transformers' `generate` on the same policy and prompts: milliseconds a token, and over ours."""
    try:
        import transformers
    except ImportError:
        raise Skipped("transformers is not installed") from None
    P, G, prompt, new = bench.size((8, 6, 1900, 128), (3, 2, 19, 3))
    transformers.utils.logging.disable_progress_bar()
    policy = transformers.AutoModelForCausalLM.from_pretrained(bench.folder, dtype=torch.bfloat16).to(bench.rank_device).eval()
    ids_nT = torch.tensor([row for row in bench.prompts(P, prompt) for _ in range(G)], device=bench.rank_device)
    figures["transformers"] = transformers.__version__

    @torch.inference_mode()
    def seconds(cache: str, tokens: int) -> float:
        return bench.seconds(lambda: policy.generate(
            ids_nT, attention_mask=torch.ones_like(ids_nT), max_new_tokens=tokens, min_new_tokens=tokens, do_sample=True, temperature=TEMPERATURE, top_k=0, top_p=1.0,
            pad_token_id=0, cache_implementation=cache, disable_compile=True))

    for cache in ("static", "dynamic"):
        seconds(cache, 2)
        step_s = (seconds(cache, new) - seconds(cache, 2)) / (new - 2)
        figures[f"{cache}_ms"] = step_s * 1e3
        if f"{P * G} rows" in bench.measured:
            figures[f"{cache}_ratio"] = step_s / bench.measured[f"{P * G} rows"]


@check(60)
def offload(bench: Bench, figures: Figures) -> Limits:
    """Two updates with weights and moments in host memory and 16 GB of the device: they run, and are those without offloading."""
    lengths, prompt = bench.size(([1024] * 8, 200), ([10] * 8, 2))
    rows, weights, norms = bench.rows(lengths, prompt), {}, {}
    for name, offloaded in (("plain", False), ("offload", True)):
        bench.clear()
        with memory_fraction(bench, lambda total: 16e9 / total if offloaded else 1.0):
            learner, updates = bench.learner(max(lengths), offloaded), []
            figures[f"{name} update_s"] = [bench.seconds(lambda: updates.append(learner.update(rows, LR))) for _ in range(2)]
            figures[f"{name} peak_GB"] = bench.peak_gb()
            weights[name] = [tensor.cpu() for _, tensor in full_weights(learner.policy)]
            norms[name] = updates[0]["grad_norm"]
            del learner
    figures["weights"] = norm(a - b for a, b in zip(*weights.values())) / norm(weights["plain"])
    figures["gradient norm"] = abs(norms["offload"] / norms["plain"] - 1)
    return {"weights": 1e-5, "gradient norm": 1e-5, "offload peak_GB": 16.0}


@check(15)
def evaluation(bench: Bench, figures: Figures) -> Limits:
    """Sampling with 32,768 tokens allowed where rows end at about 300 and two of them late: the cache grows, and is never reserved at its longest."""
    P, G, prompt, new, slots = bench.size((24, 8, 100, 32768, 128), (4, 2, 8, 512, 4))
    lengths = np.random.default_rng(3).integers(*bench.size((200, 400), (4, 24)), P * G).tolist()
    lengths[:2] = [bench.size(1500, 100)] * 2
    with bench.gpu() as device, forced_lengths(lengths), first_columns(bench.size(sampler_module.FIRST_COLUMNS, 16)), counted(bench, figures):
        bench.clear()
        sampler = Sampler(bench.policy(device, peaked=True), SamplerConfig(G, new, 0.6, slots), [], top_p=0.95)
        figures["rollout_s"] = bench.seconds(lambda: sampler.generate(bench.prompts(P, prompt), G, (0,)))
        figures |= {"tokens_per_s": sum(lengths) / figures["rollout_s"], "peak_GB": bench.peak_gb()}
    return {"peak_GB": 25.0}


@check(15)
def embedder(bench: Bench, figures: Figures) -> None:
    """Embeddings, similarity, SMI and adjusted rewards of a step with an embedder of the default's geometry: seconds, and over the whole step."""
    try:
        import sentence_transformers  # noqa: F401
        import transformers
    except ImportError as error:
        raise Skipped(f"{error.name} is not installed") from None
    from embedder import Embedder
    from reward import adjust_rewards, cosine_similarity

    P, G, tokens = bench.size((8, 6, 2400), (3, 2, 24))
    tokenizer = transformers.AutoTokenizer.from_pretrained(ROOT / "tiny/policy")
    sizes = bench.size(dict(hidden_size=384, intermediate_size=1536, num_hidden_layers=12, num_attention_heads=12),       # granite-embedding-small-english-r2
                       dict(hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4))
    folder = bench.scratch / "embedder"
    transformers.AutoModel.from_config(transformers.ModernBertConfig(vocab_size=50368, pad_token_id=tokenizer.pad_token_id, **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    reader = Embedder(str(folder), max_new_tokens=tokens, device=bench.rank_device)
    rng = np.random.default_rng(0)
    texts = ["".join(map(str, rng.integers(0, 10, tokens))) for _ in range(P * G)]       # a digit is a token
    rewards_PG = torch.from_numpy(rng.random((P, G))).float()

    def adjust() -> None:
        similarity_PGG = torch.stack([cosine_similarity(group) for group in reader.encode(texts).unflatten(0, (P, G))])
        for rewards_G, similarity_GG in zip(rewards_PG, similarity_PGG):
            adjust_rewards(rewards_G, similarity_GG)

    figures["first_s"] = bench.seconds(adjust)
    figures["dra_s"] = bench.seconds(adjust)
    if "step" in bench.measured:
        figures["of the step_share"] = figures["dra_s"] / (figures["dra_s"] + bench.measured["step"])


MEMORY_KEYS = ("learner.micro_batch_tokens", "sampler.slots", "model.activation_checkpointing", "learner.offload", "eval.slots", "eval.max_new_tokens")


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
    """Memory that runs out in a step, with a tenth of the device allowed, and a full device without room for one row, name the keys that help."""
    with bench.gpu(stand_in_gb=0.02) as device:
        policy = bench.policy(device)
        total = torch.cuda.mem_get_info()[1]

        def run_out() -> None:
            handlers = [(signum, signal.getsignal(signum)) for signum in (signal.SIGINT, signal.SIGTERM)]
            stop = Stop()
            for signum, handler in handlers:            # it answers signals, and this process is no run
                signal.signal(signum, handler)
            with stop.local("step 1"), redirect_stderr(io.StringIO()):
                torch.empty(bench.size(total // 5, 2 * total), dtype=torch.uint8, device=device)
            with redirect_stderr(io.StringIO()):
                stop.any_rank()

        def fill() -> None:
            ballast = torch.empty(torch.cuda.mem_get_info()[0] - bench.size(500_000_000, 4_000_000), dtype=torch.uint8, device=device)
            Sampler(policy, SamplerConfig(2, 32768), []).generate(bench.prompts(1, 100), 2, (0,))
            del ballast

        with memory_fraction(bench, lambda total: 0.1):
            figures["in a step"], step_named = refusal(run_out)
        figures["on a full device"], device_named = refusal(fill)
    figures |= {"in a step: no key named": int(not step_named), "on a full device: no key named": int(not device_named)}
    return {"in a step: no key named": 0, "on a full device: no key named": 0}


# ------------------------------------------------------------------------------------------------ running them


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
        found["ok"] = all(figures[name] <= limit for name, limit in limits.items())         # nan is no pass
        found["tolerance"] = limits
    except Skipped as reason:
        found |= {"ok": None, "skipped": str(reason)}
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)[-4:]
        found |= {"ok": False, "error": f"{type(error).__name__}: {error}"[:600], "where": [f"{Path(f.filename).name}:{f.lineno} {f.name}: {f.line}" for f in frames]}
    return found | {"figures": rounded(figures, bench.smoke), "seconds": round(time.perf_counter() - start, 1)}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the checks in order and writes a line for each; returns 1 if one of them failed, 2 without a GPU."""
    begun = time.perf_counter()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, epilog="checks: " + ", ".join(CHECKS))
    parser.add_argument("--only", action="append", choices=CHECKS, metavar="NAME", help="run this check alone; may be given several times")
    parser.add_argument("--budget", type=float, default=520, help="seconds; a check that would not fit any more is skipped (520)")
    parser.add_argument("--out", type=Path, default=ROOT / "runs/gpu.jsonl", help="file that lines are appended to (runs/gpu.jsonl)")
    parser.add_argument("--smoke", action="store_true", help="every line on a CPU, with tiny shapes")
    args = parser.parse_args(argv)
    if args.smoke:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""         # here and in the commands that are run
    elif not torch.cuda.is_available():
        print("error: torch.cuda.is_available() is False: this needs a GPU; --smoke runs it on a CPU", file=sys.stderr)
        return 2
    try:
        commit = subprocess.run(["git", "describe", "--always", "--dirty", "--exclude=*"], cwd=ROOT, capture_output=True, text=True).stdout.strip() or None
    except FileNotFoundError:                           # no git on this machine
        commit = None
    about = {"device": "smoke" if args.smoke else torch.cuda.get_device_name(0), "commit": commit, "torch": torch.__version__}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    failed: set[str] = set()
    with tempfile.TemporaryDirectory() as scratch, open(args.out, "a", encoding="utf-8") as out:
        bench = Bench(args.smoke, Path(scratch))
        for name, check in CHECKS.items():
            if args.only and name not in args.only:
                continue
            if time.perf_counter() - begun + check.seconds > args.budget:
                line = {"ok": None, "skipped": f"{check.seconds:.0f} s more would pass the budget of {args.budget:.0f} s"}
            else:
                line = line_of(bench, check)
            if line["ok"] is False:
                failed.add(name)
            if failed & {"ragged_op", "graphs"} and name in ("decode", "step", "cudnn"):
                line["note"] = "of a wrong sampler"
            line = {"check": name} | line | about
            for file in (out, sys.stdout):
                print(json.dumps(line), file=file, flush=True)
            bench.clear()
    return int(bool(failed))


if __name__ == "__main__":
    leave(main())                                       # a process group's threads outlive it
