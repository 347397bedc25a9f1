"""Tokens per second and memory of our sampler and of transformers', on the same weights, prompts and forced lengths.

    python benchmarks/sampler.py [--workloads tiny-fp32 ...] [--rounds 3] [--threads 2]

With OMP_WAIT_POLICY=PASSIVE other work on the machine disturbs less, but each operation has to wake the second thread;
a run does without. So set it only where the machine is not quiet, and compare within one setting.

Workload: 8 prompts x 6 completions at temperature 0.7, log-normal lengths with mean about 110, cut at 256. Each
contestant is a process of its own, asked in turn, so that none runs on another's left-over threads or memory; medians
over rounds, the first round of each being a warm-up that does not count. `bound` is the time the machine would need if
it did nothing but the products (at the GEMM rate measured here for as many rows) and the reads of weights and live keys
and values (at the measured bandwidth), the larger of the two per step. Peak memory is each process's largest resident
set, model and libraries included (Linux).
"""
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import transformers

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.rounds import Child, arguments, peak_mib, play, ratio  # noqa: E402
from model import Transformer, product_dtype  # noqa: E402
from sampler import Rollout, Sampler, SamplerConfig  # noqa: E402

TINY = dict(hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
            vocab_size=512)
SMALL = dict(hidden_size=512, intermediate_size=1408, num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=2,
             vocab_size=8192)
SMOLLM2 = dict(hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
               num_key_value_heads=3, vocab_size=49152, tie_word_embeddings=True)       # that of SmolLM2-135M
WORKLOADS = {                                           # geometry, dtype, prompt tokens
    "tiny-fp32": (TINY, torch.float32, 64), "tiny-bf16": (TINY, torch.bfloat16, 64),
    "small-fp32": (SMALL, torch.float32, 64), "small-bf16": (SMALL, torch.bfloat16, 64),
    "small-fp32-256": (SMALL, torch.float32, 256), "small-bf16-256": (SMALL, torch.bfloat16, 256),
    "smollm2-fp32": (SMOLLM2, torch.float32, 40), "smollm2-bf16": (SMOLLM2, torch.bfloat16, 40),
}
PROMPTS, GROUP, CAP, TEMPERATURE = 8, 6, 256, 0.7
LENGTHS = np.random.default_rng(0).lognormal(4.55, 0.55, PROMPTS * GROUP).round().clip(8, CAP).astype(int).tolist()


def build(name: str, folder: str) -> None:
    geometry, dtype, _ = WORKLOADS[name]
    torch.manual_seed(0)
    kind = transformers.LlamaConfig if geometry is SMOLLM2 else transformers.Qwen2Config
    config = kind(**{"tie_word_embeddings": False, **geometry}, max_position_embeddings=1024, bos_token_id=None,
                  eos_token_id=None, pad_token_id=0)
    transformers.AutoModelForCausalLM.from_config(config).to(dtype).save_pretrained(folder)


class ForcedRollout(Rollout):
    """A rollout whose row i ends after LENGTHS[i] tokens, whatever it draws."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.limits = list(LENGTHS)


class AtLengths(transformers.StoppingCriteria):
    """The same for transformers' generate."""

    def __init__(self, prompt: int):
        self.ends = torch.tensor(LENGTHS) + prompt

    def __call__(self, input_ids, scores, **_):
        return self.ends <= input_ids.shape[1]


def ours(folder: str, name: str, prompts: list[list[int]], share: bool = True):
    model = Transformer.from_pretrained(folder, WORKLOADS[name][1])
    sampler = Sampler(model, SamplerConfig(GROUP, CAP, TEMPERATURE), [])
    prompts, group = (prompts, GROUP) if share else ([prompt for prompt in prompts for _ in range(GROUP)], 1)

    @torch.inference_mode()
    def run() -> int:
        sampler.release()
        rollout = ForcedRollout(sampler, prompts, group, [(0, i) for i in range(PROMPTS * GROUP)])
        return sum(len(completion.tokens) for completion in rollout.run())
    return run


def generate(folder: str, name: str, prompts: list[list[int]], cache: str):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=WORKLOADS[name][1])
    ids = torch.tensor([prompt for prompt in prompts for _ in range(GROUP)])

    def run() -> int:
        model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=CAP, do_sample=True,
                       temperature=TEMPERATURE, top_k=0,
                       cache_implementation=cache, stopping_criteria=[AtLengths(ids.shape[1])], disable_compile=True)
        return sum(LENGTHS)
    return run


def continuous(folder: str, name: str, prompts: list[list[int]]):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=WORKLOADS[name][1])
    settings = transformers.GenerationConfig(max_new_tokens=CAP, do_sample=True, temperature=TEMPERATURE, top_k=0,
                                             eos_token_id=-1, pad_token_id=0)

    def run() -> int:
        manager = model.init_continuous_batching(generation_config=settings)
        manager.start()
        for i, length in enumerate(LENGTHS):
            manager.add_request(prompts[i // GROUP], request_id=str(i), max_new_tokens=length)
        done = 0
        while done < len(LENGTHS):
            result = manager.get_result(timeout=60)
            done += result is not None and result.is_finished()
        manager.stop(block=True)
        return sum(LENGTHS)
    return run


CONTESTANTS = {
    "ours": ours,
    "ours, prefix not shared": lambda folder, name, prompts: ours(folder, name, prompts, share=False),
    "generate, dynamic cache": lambda *a: generate(*a, "dynamic"),
    "generate, static cache": lambda *a: generate(*a, "static"),
    "continuous batching": continuous,
}


def prompts_for(name: str) -> list[list[int]]:
    geometry, _, tokens = WORKLOADS[name]
    return np.random.default_rng(1).integers(1, geometry["vocab_size"], (PROMPTS, tokens)).tolist()


def seconds(function, rounds: int = 3) -> float:
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def bound(name: str) -> float:
    """Seconds for the workload at the machine's own bandwidth and GEMM rate, both measured now.

    bf16 without instructions for it counts at the fp32 rate.
    """
    geometry, dtype, prompt = WORKLOADS[name]
    big = torch.ones(2**27 // dtype.itemsize, dtype=dtype)
    out = torch.empty_like(big)
    bandwidth = 2 * big.nbytes / seconds(lambda: out.copy_(big), 5)
    C, I, L, V = (geometry[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size"))
    heads, kv = geometry["num_attention_heads"], geometry["num_key_value_heads"]
    D = C // heads
    products = product_dtype(big)
    a, w = torch.randn(PROMPTS * GROUP, C).to(products), torch.randn(2 * I, C).to(products)
    repeats = 20
    with torch.inference_mode():
        rate = repeats * 2 * a.shape[0] * w.numel() / seconds(lambda: [torch.mm(a, w.t()) for _ in range(repeats)], 10)
    weights = L * (C * (heads + 2 * kv) * D + heads * D * C + 3 * C * I) + V * C
    total = 2 * PROMPTS * prompt * (weights - V * C) / rate
    for step in range(max(LENGTHS)):
        live = sum(length > step for length in LENGTHS)
        kv_values = live * (prompt + step) * 2 * L * kv * D
        flops = 2 * live * weights + 4 * live * (prompt + step) * L * heads * D
        total += max(flops / rate, (weights + kv_values) * dtype.itemsize / bandwidth)
    print(f"   machine: {bandwidth / 1e9:.1f} GB/s, {rate / 1e9:.1f} GFLOP/s at {PROMPTS * GROUP} rows in "
          f"{str(products).removeprefix('torch.')}")
    return total


def serve(contestant: str, name: str, folder: str) -> None:
    run = CONTESTANTS[contestant](folder, name, prompts_for(name))
    for _ in sys.stdin:
        start, busy = time.perf_counter(), time.process_time()
        tokens = run()
        print(json.dumps({"tokens": tokens, "seconds": time.perf_counter() - start,
                          "processor": time.process_time() - busy, "peak": peak_mib()}), flush=True)


def main() -> None:
    args = arguments(__doc__, WORKLOADS, CONTESTANTS)
    torch.set_num_threads(args.threads)
    transformers.utils.logging.disable_progress_bar()
    if args.serve:
        serve(args.serve, args.workloads[0], str(args.folder))
        return
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {args.threads} threads; "
          f"lengths mean {np.mean(LENGTHS):.0f}, max {max(LENGTHS)}")
    for name in args.workloads:
        with tempfile.TemporaryDirectory() as folder:
            build(name, folder)
            print(f"\n{name}", flush=True)
            limit, first = bound(name), args.contestants[0]
            command = [sys.executable, __file__, "--workloads", name, "--folder", folder]
            command += ["--threads", str(args.threads)]
            children = {contestant: Child([*command, "--serve", contestant], Path(folder) / f"{contestant}.log")
                        for contestant in args.contestants}
            rounds = play(children, args.rounds)
            for contestant in args.contestants:
                runs = [round_[contestant] for round_ in rounds]
                times = [run["seconds"] for run in runs]
                print(f"   {contestant:<26}{runs[0]['tokens'] / statistics.median(times):>8.0f} tok/s "
                      f"({min(times):.2f}..{max(times):.2f} s)  time / {first}: {ratio(rounds, contestant, first):.2f}"
                      f", processor {ratio(rounds, contestant, first, 'processor'):.2f}"
                      f"  {limit / statistics.median(times):>4.0%} of the bound  peak {runs[-1]['peak']:.0f} MiB",
                      flush=True)


if __name__ == "__main__":
    main()
