"""What would stop a run later, found in its first seconds on this machine: GPU, torch, memory, disk, the hub.

    findings = Findings()
    work = training(config, findings, world)            # what the run will do, settings = "auto" decided
    findings.stop()                                     # one ValueError with all problems; warnings are for the caller

Each finding names the setting to change. A memory estimate is within a tenth of the truth, so a run is refused only
where nine tenths of it are too much; where it is just tight, a warning says so.
"""
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from model import DTYPES, ModelConfig, Transformer, read_config
from plan.fit import fits, gb, to_fit
from plan.gpus import Gpu, of_this_machine
from plan.memory import Work, embedder_bytes, evaluation_parts, host_peak, parts, peaks
from prompts import model_folder

SLACK = 0.9                                             # of an estimate: less than this is too little for certain
NEWEST_NEEDED = (2, 11)                                 # version of torch


@dataclass
class Findings:
    """Problems that stop a run, and warnings that do not, in words."""
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @contextmanager
    def collecting(self, into: list[str] | None = None) -> Iterator[None]:
        """A ValueError inside becomes a problem, or a line of `into`, and what comes after is looked at too."""
        try:
            yield
        except ValueError as error:
            into = self.problems if into is None else into
            into += [str(error)] * (str(error) not in into)

    def stop(self, tell: bool = True) -> None:
        """Warnings on stderr, but for `tell` = False, then ValueError with all problems, if there are any."""
        for warning in self.warnings if tell else ():
            print(f"warning: {warning}", file=sys.stderr)
        if len(self.problems) == 1:
            raise ValueError(self.problems[0])
        if self.problems:
            lines = "".join(f"\n  {i}. {problem}" for i, problem in enumerate(self.problems, 1))
            raise ValueError(f"{len(self.problems)} things stand in the way:{lines}")


# ------------------------------------------------------------------------------------------------ this machine


def free_gpu(device: torch.device) -> int:
    """Bytes that are free on a GPU now."""
    return torch.cuda.mem_get_info(device)[0]


def free_host() -> int | None:
    """Bytes of host memory that this process may still take; None where the system does not say."""
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")      # of a container
    if limit.is_file() and used.is_file() and (most := limit.read_text().strip()).isdigit():
        free = min(free, int(most) - int(used.read_text()))
    return max(0, free)


def free_disk(folder: Path) -> int:
    """Bytes that are free where `folder` is, or would be."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free


def this_device() -> torch.device:
    """The GPU of this rank, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


def this_gpu() -> Gpu | None:
    """The GPU of this rank with what is free of its memory, None on a CPU."""
    device = this_device()
    return replace(of_this_machine(device), memory=float(free_gpu(device))) if device.type == "cuda" else None


def local_ranks(world: int = 1) -> int:
    """Ranks that share this machine; without a launcher that says so, all."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world))


# ------------------------------------------------------------------------------------------------ a run's work


def network(config: ModelConfig) -> Transformer:
    """The policy on the meta device, from config.json alone."""
    return on_meta(Path(model_folder(config, ["config.json"])))


def on_meta(folder: Path) -> Transformer:
    with torch.device("meta"):
        return Transformer(read_config(folder), where=str(folder / "config.json"))


def training_work(config, model: Transformer, world: int, gpu: bool) -> Work:
    """What one of `world` ranks of a training run with these settings does; "auto" counts as no recomputation."""
    work = Work(
        prompts=-(-config.data.prompts_per_step // world), group_size=config.sampler.group_size,
        prompt_tokens=config.data.max_prompt_tokens, max_new_tokens=config.sampler.max_new_tokens,
        dtype=DTYPES[config.model.dtype], gpu=gpu, world=world, slots=config.sampler.slots,
        micro_batch_tokens=config.learner.micro_batch_tokens, updates=config.learner.updates_per_rollout,
        reference=config.learner.kl_beta > 0, offload=config.learner.offload,
        checkpointing=config.model.activation_checkpointing is True,
        eval_tokens=config.data.max_prompt_tokens + config.eval.max_new_tokens if config.eval.benchmarks else 0)
    if not config.dra.enabled:
        return work
    return replace(work, embedder=embedder_bytes(config.dra.embedder, model.g, work))


def decided(config, model: Transformer, work: Work, free: float | None) -> Work:
    """With model.activation_checkpointing = "auto" made of it: recomputation only where memory is too short without."""
    if config.model.activation_checkpointing != "auto":
        return work
    saved = max(peaks(parts(model, replace(work, checkpointing=False))).values())
    return replace(work, checkpointing=free is None or not fits(saved, free))


def training(config, findings: Findings, world: int) -> Work:
    """All checks of a training run on this machine; returns what this rank will do."""
    model, gpu, host = network(config.model), this_gpu(), free_host()
    on_this_machine(findings, config.model.dtype, world, config.learner.offload)
    work = training_work(config, model, world, gpu is not None)
    work = decided(config, model, work, gpu.memory if gpu else host and host / local_ranks(world))
    training_memory(findings, model, work)
    run = config.run
    disk(findings, Path(run.dir), model, config.model.dtype, min(run.keep + 1, -(-run.steps // run.save_every)))
    return work


def embedder_reads(config) -> str:
    """A line about an embedder that reads only the beginning of long completions, "" for one that reads all."""
    limit, cap = config.dra.max_tokens, config.sampler.max_new_tokens
    if not (config.dra.enabled and 0 < limit < cap):
        return ""
    return (f"dra.max_tokens = {limit}: of a completion of {cap} tokens the embedder reads the first "
            f"{limit / cap:.0%}; embed_cut in metrics.jsonl counts those that were cut")


def evaluation_work(config, model: Transformer, world: int, gpu: bool, prompt_tokens: int) -> Work:
    """What a rank of an evaluation does with a problem whose prompt is so long."""
    work = Work(prompts=1, group_size=config.eval.samples, prompt_tokens=prompt_tokens,
                max_new_tokens=config.eval.max_new_tokens, dtype=DTYPES[config.model.dtype], gpu=gpu, world=world)
    if not config.diversity.embedder:
        return work
    return replace(work, embedder=embedder_bytes(config.diversity.embedder, model.g, work))


def evaluation(config, findings: Findings) -> None:
    """All checks of an evaluation on this machine: it decodes fewer rows where memory is short, but one must fit."""
    model, gpu, host = network(config.model), this_gpu(), free_host()
    on_this_machine(findings, config.model.dtype, 1)
    work = evaluation_work(config, model, 1, gpu is not None, 0)
    found = evaluation_parts(model, work, 1, work.row_tokens)
    need, free = max(peaks(found).values()), gpu.memory if gpu else host and host / local_ranks()
    compare(findings, gpu.name if gpu else "this machine", need, free,
            lambda: "lower eval.max_new_tokens, or take a machine with more")


# ------------------------------------------------------------------------------------------------ checks


def on_this_machine(findings: Findings, dtype: str, world: int, offload: bool = False) -> None:
    """Whether torch and the GPU do what the settings ask for."""
    device, version = this_device(), torch.__version__
    if tuple(int(number) for number in version.split("+")[0].split(".")[:2]) < NEWEST_NEEDED:
        findings.problems.append(f"torch {version} is too old: this needs torch >= {'.'.join(map(str, NEWEST_NEEDED))} "
                                 "(pip install -r requirements.txt)")
    if device.type == "cpu":
        if dtype == "bfloat16" or offload:
            wanted = "learner.offload = true" if offload else 'model.dtype = "bfloat16"'
            why = ("this torch is built without CUDA; docs/gpu.md says how to install one with it"
                   if torch.version.cuda is None else "look at nvidia-smi and CUDA_VISIBLE_DEVICES")
            findings.warnings.append(f"{wanted} is meant for a GPU, and torch {version} finds none ({why}): everything "
                                     "is computed on the CPU")
        return
    if (ranks := local_ranks(world)) > (count := torch.cuda.device_count()):
        findings.problems.append(f"{ranks} ranks on this machine, and torch sees {count} GPUs here; lower "
                                 "--nproc-per-node, or look at CUDA_VISIBLE_DEVICES")
        return
    name, capability = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
    if dtype == "bfloat16" and capability < (8, 0):
        findings.problems.append(f'model.dtype = "bfloat16": {name} has compute capability {capability[0]}.'
                                 f'{capability[1]}, and bfloat16 begins with 8.0; set model.dtype = "float32" or take '
                                 "another GPU")
    elif dtype == "bfloat16" and not ragged_attention():
        findings.problems.append(f"torch {version} has no FlashAttention over ragged rows (seqused_k of "
                                 "aten::_flash_attention_forward), with which bfloat16 is sampled; install torch >= "
                                 '2.11 with CUDA, or set model.dtype = "float32"')


def ragged_attention() -> bool:
    """Whether this torch has the kernel of sampler.Slots.attend."""
    try:
        schema = torch.ops.aten._flash_attention_forward.default._schema
    except AttributeError:
        return False
    return any(argument.name == "seqused_k" for argument in schema.arguments) \
        and torch.backends.cuda.is_flash_attention_available()


def compare(findings: Findings, what: str, need: float, free: float | None, remedies: Callable[[], str]) -> str:
    """Compares an estimate with what is free of `what`, such as "host memory": "fits", or "is tight" and a warning, or
    "does not fit" and a problem."""
    if free is None or fits(need, free):
        return "fits"
    amounts = f"{what} has {free / 1e9:.1f} GB free, and this needs {gb(need)}"
    if need * SLACK > free:
        findings.problems.append(f"{amounts}; {remedies()}")
        return "does not fit"
    findings.warnings.append(f"memory is tight: {amounts}, give or take a tenth; {remedies()}")
    return "is tight"


def training_memory(findings: Findings, model: Transformer, work: Work) -> None:
    """GPU and host memory of a training run on this machine."""
    found, gpu, host, ranks = parts(model, work), this_gpu(), free_host(), local_ranks(work.world)
    need = max(peaks(found).values())
    if gpu:
        compare(findings, gpu.name, need, gpu.memory, lambda: to_fit(model, work, gpu.memory, host and host / ranks))
        most = max((part for part in found if part.host), key=lambda part: part.host)
        compare(findings, "host memory", host_peak(found) * ranks, host,
                lambda: f"most of it is {most.name}; take a machine with more, or ranks on several machines")
    else:
        compare(findings, "this machine", need * ranks, host, lambda: to_fit(model, work, host / ranks))


def disk(findings: Findings, folder: Path, model: Transformer, dtype: str, checkpoints: int) -> None:
    """Room for the most `checkpoints` that a run has at once, and for its policy."""
    parameters, kind = sum(p.numel() for p in model.parameters()), DTYPES[dtype]
    one = parameters * 3 * torch.promote_types(kind, torch.float32).itemsize        # weights and two moments
    there = sum(path.stat().st_size for path in (folder / "checkpoints").rglob("*") if path.is_file())
    need, free = checkpoints * one + parameters * kind.itemsize - there, free_disk(folder)
    if need > free:
        findings.problems.append(f"run.dir = {str(folder)!r}: {free / 1e9:.1f} GB are free there, and the run needs "
                                 f"{need / 1e9:.1f} GB ({checkpoints} x {one / 1e9:.1f} GB of checkpoints, with the "
                                 "one being written, and the policy); lower run.keep, or name a run.dir on another "
                                 "disk")
