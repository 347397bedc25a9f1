"""Checkpoints of a run: RUN/checkpoints/step-000050/{policy/, state/, meta.json}, safetensors and JSON only.

`policy/` is a Hugging Face folder with the master weights, `state/` the optimizer's tensors written shard by shard through
torch.distributed.checkpoint (it loads on another number of ranks), `meta.json` the step and whatever the run adds. A
checkpoint is written to a temporary folder and renamed when it is complete, so a folder named step-* is always whole.
"""
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter


def barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def steps(run_dir: Path) -> list[Path]:
    """Folders of the complete checkpoints of a run, oldest first."""
    return sorted(path for path in (run_dir / "checkpoints").glob("step-*") if (path / "meta.json").is_file())


def latest(run_dir: Path) -> Path | None:
    return next(reversed(steps(run_dir)), None)


def save(run_dir: Path, step: int, write_policy: Callable[[Path], None], state: dict[str, Tensor], meta: dict, keep: int) -> None:
    """Writes the checkpoint of `step` and removes all but the newest `keep`. Every rank calls it.

    `write_policy(folder)` is called on every rank (gathering is collective) and writes on the first. `state` holds plain or
    sharded tensors under the same names on all ranks.
    """
    first = not dist.is_initialized() or dist.get_rank() == 0
    final = run_dir / "checkpoints" / f"step-{step:06d}"
    part = final.with_name(f".{final.name}.part")
    if first:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
    barrier()
    with one_process_is_fine():
        dcp.save(state, storage_writer=HuggingFaceStorageWriter(str(part / "state"), save_distributed=True), no_dist=not dist.is_initialized())
    write_policy(part / "policy")
    if first:
        (part / "meta.json").write_text(json.dumps({"step": step, **meta}, indent=2) + "\n")
        publish(part, final)
        for old in steps(run_dir)[:-keep]:
            shutil.rmtree(old)
    barrier()


def publish(part: Path, final: Path) -> None:
    """Gives a finished folder its name, once everything in it is on disk."""
    for path in part.rglob("*"):
        sync(path)
    shutil.rmtree(final, ignore_errors=True)
    os.replace(part, final)
    sync(final.parent)


def load(folder: Path, state: dict[str, Tensor]) -> dict:
    """Fills the tensors of `state` (plain or sharded) in place from a checkpoint and returns its meta.json."""
    with one_process_is_fine():
        dcp.load(state, storage_reader=HuggingFaceStorageReader(str(folder / "state")), no_dist=not dist.is_initialized())
    return json.loads((folder / "meta.json").read_text())


@contextmanager
def one_process_is_fine() -> Iterator[None]:
    """Hides torch's warning that a run without a process group saves in a single process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def sync(path: Path) -> None:
    """Forces a file or folder to disk, so that a rename never outlives the data it names."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
