"""--dry-run: what a run needs, how long it takes and what it costs, before anything is loaded or written.

    python dra_grpo.py --config configs/dra_grpo.toml --dry-run --gpu h100 --gpus 4 --price 2.5

Without --gpu the run is meant for this machine, and whatever is missing here is a problem. With --gpu it is meant for
another one: what is missing here is said, and only what cannot work there is a problem. "~" marks an estimate;
everything without it was read or counted.
"""
import argparse
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from data import DataConfig
from eval_samples import ROWS_PER_CALL, SLOTS_PER_CALL, EvalConfig, settings_of
from model import DTYPES, ModelConfig, Transformer
from plan import memory, speed
from plan.fit import gb, rows_at_a_time, to_fit, tokens_left
from plan.gpus import GPUS, Gpu, named
from plan.preflight import (Findings, compare, decided, evaluation_work, free_host, network, on_meta, this_gpu,
                            training_work)
from prompts import prompt_text, prompt_tokens

ROOT = Path(__file__).parents[1]
KNOWN = {"deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": ROOT / "benchmarks/r1_distill_qwen_1_5b"}     # config.json alone
PROMPTS_COUNTED = 256
PROMPT_TOKENS = 1024                                    # of a benchmark that is not here
LEGEND = f"~ is estimated, with {speed.MEASURED_ON}; the rest is read or counted"


@dataclass(frozen=True)
class Request:
    """What the command line asks of a dry run."""
    gpu: Gpu | None                                     # None: this machine
    world: int
    price: float | None                                 # of a GPU and hour
    length: float | None                                # tokens of a completion on average

    def lengths(self, prompt: float, cap: int) -> speed.Lengths:
        """Completions of --length tokens, or of two thirds of the cap."""
        return speed.Lengths(prompt, min(self.length or cap * 2 / 3, cap), cap)


def add_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("dry run")
    group.add_argument("--dry-run", action="store_true",
                       help="say what the run needs, how long it takes and what it costs, and end; exit code 2 if it "
                            "cannot work")
    group.add_argument("--gpu", metavar="NAME", help=f"ask about another machine's GPU: {', '.join(GPUS)}")
    group.add_argument("--gpus", type=int, metavar="N", help="ranks, one GPU each")
    group.add_argument("--price", type=float, metavar="X", help="of a GPU and hour, in any currency")
    group.add_argument("--length", type=float, metavar="TOKENS",
                       help="tokens of a completion on average, by default two thirds of max_new_tokens")


def request(args: argparse.Namespace) -> Request | None:
    """None without --dry-run; ValueError for options that make no sense."""
    given = [f"--{name}" for name in ("gpu", "gpus", "price", "length") if getattr(args, name) is not None]
    if not args.dry_run:
        if given:
            raise ValueError(f"{', '.join(given)} belongs to --dry-run; add it, or leave {' and '.join(given)} out")
        return None
    for name in given:
        if name != "--gpu" and not 0 < getattr(args, name[2:]) < float("inf"):
            raise ValueError(f"{name} must be a positive number; got {getattr(args, name[2:])}")
    return Request(named(args.gpu) if args.gpu else None, args.gpus or int(os.environ.get("WORLD_SIZE", 1)), args.price,
                 args.length)


def network_or_known(config: ModelConfig, findings: Findings) -> Transformer:
    """The policy on the meta device; one of KNOWN need not be here, and then a warning says so."""
    try:
        return network(config)
    except ValueError:
        if config.path not in KNOWN:
            raise
        findings.warnings.append(f"sizes of {config.path} are read from {KNOWN[config.path].relative_to(ROOT)}")
        return on_meta(KNOWN[config.path])


# ------------------------------------------------------------------------------------------------ training


def training(config, model: Transformer, request: Request, prompt: float, benchmarks: dict[str, int],
             findings: Findings) -> list[str]:
    """The lines about memory, time and cost. `prompt`: its tokens on average; `benchmarks`: problems of each."""
    gpu = request.gpu or this_gpu()
    work = training_work(config, model, request.world, gpu is not None)
    lines = []
    work = decided(config, model, work, gpu.memory if gpu else free_host())
    if config.model.activation_checkpointing == "auto":
        lines.append(f'model.activation_checkpointing = "auto": {str(work.checkpointing).lower()} here')
    found = memory.parts(model, work)
    lines += [memory.table(found), "", LEGEND]
    sums = memory.peaks(found)
    phase, need = max(sums.items(), key=lambda item: item[1])
    lines.append(f"peak: {gb(need)} ({phase})" + (f", {gb(memory.host_peak(found))} of host memory" if gpu else ""))
    if gpu is None:
        return [*lines, "time: not estimated for a CPU; name a GPU with --gpu"]
    lines.append(on(gpu, work.dtype, need, lambda: to_fit(model, work, gpu.memory), request, findings))
    lengths = request.lengths(prompt, work.max_new_tokens)
    times = speed.step_times(model, work, gpu, lengths)
    lines.append(f"a step, completions of {lengths.mean:,.0f} tokens on average: {times.decode_steps:,.0f} decode "
                 f"steps read ~{times.decode_bytes / 1e12:.1f} TB, the update takes ~{times.update_flops / 1e12:,.0f} "
                 "TFLOP" + (" on each GPU" if request.world > 1 else ""))
    if not times.step_s:
        return [*lines, f"time: not estimated, the speed of {gpu.name} is not in the table; name a GPU with --gpu"]
    evaluations = 1 + -(-config.run.steps // config.eval.every) if config.eval.every else 2
    rows = rows_at_a_time(tokens_left(sums["evaluation"], gpu.memory, model.g, work.dtype), work.eval_tokens)
    eval_s = sum(evaluation_s(model, work.dtype, gpu, settings_of(config.eval, name), problems, rows, request, prompt)
                 for name, problems in benchmarks.items())
    hours = (config.run.steps * times.step_s + evaluations * eval_s) / 3600
    lines.append(f"time: rollout {seconds(times.rollout_s)}, update {seconds(times.update_s)}, together "
                 f"{seconds(times.step_s)} a step")
    if benchmarks:
        lines.append(f"{evaluations} evaluations of {seconds(eval_s)} each, {rows} rows at a time")
    lines.append(f"the run: {config.run.steps} steps in {seconds(3600 * hours)}" + cost(hours, request))
    return lines


def on(gpu: Gpu, dtype: torch.dtype, need: float, remedies: Callable[[], str], request: Request,
       findings: Findings) -> str:
    """A line about the GPU; what it cannot do is a problem (of this machine's own, preflight.py tells)."""
    findings = findings if request.gpu else Findings()
    speeds = ""
    if gpu.bandwidth:
        speeds = f", {gpu.bandwidth / 1e12:.2f} TB/s, {gpu.flops(dtype) / 1e12:.0f} TFLOP/s ({gpu.source})"
    if gpu.bandwidth and dtype == torch.bfloat16 and not gpu.bf16:
        findings.problems.append(f'model.dtype = "bfloat16": {gpu.name} has none; set model.dtype = "float32" or take '
                                 "another GPU")
    verdict = compare(findings, gpu.name, need, gpu.memory, remedies)
    return f"{request.world} x {gpu.name}, {gpu.memory / 1e9:.0f} GB{speeds}: {verdict}"


def evaluation_s(model: Transformer, dtype: torch.dtype, gpu: Gpu, config: EvalConfig, problems: int, rows: int,
                 request: Request, prompt: float) -> float:
    """Seconds in which each rank samples its share of a benchmark's problems, at most `rows` at a time."""
    share, lengths = -(-problems // request.world), request.lengths(prompt, config.max_new_tokens)
    call = max(1, min(ROWS_PER_CALL, SLOTS_PER_CALL * config.slots or ROWS_PER_CALL) // config.samples)
    slots = min(rows, config.slots or rows)
    sizes = [call] * (share // call) + [share % call] * (share % call > 0)
    return sum(speed.decoding(model, dtype, gpu, size * config.samples, slots, lengths)[2] for size in sizes)


def seconds(s: float) -> str:
    """An estimate of a time, with two digits."""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if s >= 2 * size:
            return f"~{float(f'{s / size:.2g}'):g} {unit}"
    return f"~{float(f'{s:.2g}'):g} s"


def cost(hours: float, request: Request) -> str:
    if request.price is None:
        return ""
    total = float(f"{hours * request.world * request.price:.2g}")
    return f", cost ~{total:g} at {request.price:g} per GPU and hour"


# ------------------------------------------------------------------------------------------------ evaluation


def evaluation(config, model: Transformer, request: Request, prompt: float, longest_prompt: int,
               benchmarks: dict[str, int], findings: Findings) -> list[str]:
    """The lines about memory, time and cost of one policy on all benchmarks."""
    gpu, g = request.gpu or this_gpu(), model.g
    dtype, cap = DTYPES[config.model.dtype], config.eval.max_new_tokens
    longest, work = longest_prompt + cap, evaluation_work(config, model, request.world, gpu is not None, longest_prompt)

    wanted = max(min(config.eval.slots or ROWS_PER_CALL, -(-problems // request.world) * settings_of(config.eval, name)
                     .samples) for name, problems in benchmarks.items()) if benchmarks else config.eval.slots or 1
    standing, least = (memory.peaks(memory.evaluation_parts(model, work, rows, rows * longest)) for rows in (0, 1))
    rows, tokens = wanted, wanted * longest
    if gpu:
        room = tokens_left(standing["evaluation"], gpu.memory, g, dtype)
        rows = min(wanted, rows_at_a_time(room, longest))
        tokens = min(rows * longest, room)
    found = memory.evaluation_parts(model, work, rows, tokens)
    phases = ("evaluation", "embedding")[: 1 + bool(work.embedder[1])]
    lines = [memory.table(found, phases), "", LEGEND, f"{rows} rows at a time, with "
             f"memory for {tokens // rows:,} of {longest:,} tokens each"]
    if gpu is None:
        return [*lines, "time: not estimated for a CPU; name a GPU with --gpu"]
    lines.append(on(gpu, dtype, max(least.values()), lambda: "lower eval.max_new_tokens or take a larger GPU", request,
                    findings))
    if not (gpu.bandwidth and gpu.flops(dtype)):
        return [*lines, f"time: not estimated, the speed of {gpu.name} in {config.model.dtype} is not in the table"]
    if not benchmarks:
        return [*lines, "time: not estimated without the problems"]
    hours = 0.0
    for name, problems in benchmarks.items():
        settings = settings_of(config.eval, name)
        s = evaluation_s(model, dtype, gpu, settings, problems, rows, request, prompt)
        hours += s / 3600
        lines.append(f"{name}: {problems} problems x {settings.samples}, completions of "
                     f"{request.lengths(prompt, cap).mean:,.0f} tokens on average: {seconds(s)}")
    return [*lines, f"the evaluation: {seconds(3600 * hours)}" + cost(hours, request)]


# ------------------------------------------------------------------------------------------------ prompts


def prompt_figures(tokenizer, rows: Sequence[dict], data: DataConfig) -> tuple[str, float, int]:
    """(the first prompt as a line, tokens on average, the most) of the first PROMPTS_COUNTED rows."""
    counts = [len(prompt_tokens(tokenizer, row, data)) for row in rows[:PROMPTS_COUNTED]]
    text = json.dumps(prompt_text(tokenizer, rows[0], data), ensure_ascii=False)
    return f"the first prompt: {text}", sum(counts) / len(counts), max(counts)


def tell(lines: Sequence[str], findings: Findings) -> int:
    """Prints everything; 0, or ValueError with the problems."""
    print("\n".join([*lines, *(f"note: {warning}" for warning in findings.warnings)]), flush=True)
    findings.stop(tell=False)
    print("nothing stands in the way")
    return 0
