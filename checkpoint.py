"""Checkpoints of a run: RUN/checkpoints/step-000050/{policy/, state/, meta.json}, safetensors and JSON only.

`policy/` is a Hugging Face folder with the master weights, `state/` the optimizer's tensors written shard by shard
through torch.distributed.checkpoint (it loads on another number of ranks), `meta.json` the step and whatever the run
adds. A checkpoint is written to a temporary folder and renamed when it is complete and on disk; meta.json has the
SHA-256 of every other file; one that is damaged later is renamed, and the one before it is used.
"""
import json
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter

import files


def barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def folder_of(run_dir: Path, step: int) -> Path:
    return run_dir / "checkpoints" / f"step-{step:06d}"


def step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def steps(run_dir: Path) -> list[Path]:
    """Folders of the checkpoints of a run, oldest first."""
    return sorted((run_dir / "checkpoints").glob("step-*"))


def newest_intact(run_dir: Path) -> Path | None:
    """The newest checkpoint that is as written; damaged ones are named on stderr and renamed to damaged-step-*."""
    for folder in reversed(steps(run_dir)):
        found = damage(folder)
        if found is None:
            return folder
        aside = next(path for i in range(1000)
                     if not (path := folder.with_name(f"damaged-{folder.name}" + f"-{i}" * (i > 0))).exists())
        folder.rename(aside)
        print(f"checkpoint {folder} is damaged ({found}): put aside as {aside.name}", file=sys.stderr)
    return None


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        digests = json.loads((folder / "meta.json").read_text())["files"]
    except (OSError, ValueError, KeyError) as error:
        return f"meta.json: {type(error).__name__}: {error}"
    for name, expected in digests.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if files.digest(folder / name) != expected:
            return f"{name} is not what was written"
    return None


def save(run_dir: Path, step: int, write_policy: Callable[[Path], None], state: dict[str, Tensor], meta: dict,
         keep: int) -> None:
    """Writes the checkpoint of `step` and removes all but the newest `keep`. Every rank calls it.

    `write_policy(folder)` is called on every rank (gathering is collective) and writes on the first. `state` holds
    plain or sharded tensors under the same names on all ranks.
    """
    first = not dist.is_initialized() or dist.get_rank() == 0
    final = folder_of(run_dir, step)
    part = files.part_of(final)
    if first:
        for unfinished in final.parent.glob(".step-*.part"):
            shutil.rmtree(unfinished)
        files.begin(final)
    barrier()
    try:
        with one_process_is_fine():
            dcp.save(state, storage_writer=HuggingFaceStorageWriter(str(part / "state"), save_distributed=True),
                     no_dist=not dist.is_initialized())
    except CheckpointException as failed:               # a BaseException, whose text is all ranks' tracebacks
        raise OSError(f"cannot write {part}: {next(iter(failed.failures.values()))[0]}") from failed
    write_policy(part / "policy")
    if first:
        written = [path for path in sorted(part.rglob("*")) if path.is_file()]
        digests = {str(path.relative_to(part)): files.digest(path) for path in written}
        (part / "meta.json").write_text(json.dumps({"step": step, **meta, "files": digests}, indent=2) + "\n")
        files.publish(final)
        for old in steps(run_dir)[:-keep]:
            files.remove(old)
    barrier()


def load(folder: Path, state: dict[str, Tensor]) -> dict:
    """Fills the tensors of `state` (plain or sharded) in place from a checkpoint and returns its meta.json."""
    with one_process_is_fine():
        dcp.load(state, storage_reader=HuggingFaceStorageReader(str(folder / "state")),
                 no_dist=not dist.is_initialized())
    return json.loads((folder / "meta.json").read_text())


@contextmanager
def one_process_is_fine() -> Iterator[None]:
    """Hides torch's warning that a run without a process group saves in a single process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield
