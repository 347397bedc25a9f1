"""Checkpoints of a run: RUN/checkpoints/step-000050/{policy/, state/, meta.json}, safetensors and JSON only.

`policy/` is a Hugging Face folder with the master weights, `state/` the optimizer's tensors written shard by shard through
torch.distributed.checkpoint (it loads on another number of ranks), `meta.json` the step and whatever the run adds. A
checkpoint is written to a temporary folder and renamed when it is complete and on disk; meta.json has the SHA-256 of every
other file, and one that is damaged later is put aside and the one before it used. A lock on RUN keeps a second writer out.
"""
import errno
import fcntl
import hashlib
import json
import os
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


def barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


@contextmanager
def lock(run_dir: Path, key: str = "run.dir") -> Iterator[None]:
    """Makes this process the only writer of the folder that config key `key` names; the lock ends with the process, however it ends.

    Raises ValueError naming the process that has it, or what keeps the folder from being written.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        handle = os.open(run_dir / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise ValueError(f"{key} = {str(run_dir)!r} cannot be written: {error.strerror}; name another {key}") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(handle, 200).decode() or "another process"
            raise ValueError(f"{key} = {str(run_dir)!r} is being written by {owner}; wait until it has ended, stop it, or name another {key}") from None
        os.ftruncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {os.uname().nodename}".encode())
        yield
    finally:
        os.close(handle)


def folder_of(run_dir: Path, step: int) -> Path:
    return run_dir / "checkpoints" / f"step-{step:06d}"


def step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def steps(run_dir: Path) -> list[Path]:
    """Folders of the checkpoints of a run, oldest first."""
    return sorted((run_dir / "checkpoints").glob("step-*"))


def newest_intact(run_dir: Path) -> Path | None:
    """The newest checkpoint whose files are what was written; damaged ones are named on stderr and renamed to damaged-step-*."""
    for folder in reversed(steps(run_dir)):
        found = damage(folder)
        if found is None:
            return folder
        aside = next(path for i in range(1000) if not (path := folder.with_name(f"damaged-{folder.name}" + f"-{i}" * (i > 0))).exists())
        folder.rename(aside)
        print(f"checkpoint {folder} is damaged ({found}): put aside as {aside.name}", file=sys.stderr)
    return None


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        files = json.loads((folder / "meta.json").read_text())["files"]
    except (OSError, ValueError, KeyError) as error:
        return f"meta.json: {type(error).__name__}: {error}"
    for name, expected in files.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if digest(folder / name) != expected:
            return f"{name} is not what was written"
    return None


def digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save(run_dir: Path, step: int, write_policy: Callable[[Path], None], state: dict[str, Tensor], meta: dict, keep: int) -> None:
    """Writes the checkpoint of `step` and removes all but the newest `keep`. Every rank calls it.

    `write_policy(folder)` is called on every rank (gathering is collective) and writes on the first. `state` holds plain or
    sharded tensors under the same names on all ranks.
    """
    first = not dist.is_initialized() or dist.get_rank() == 0
    final = folder_of(run_dir, step)
    part = part_of(final)
    if first:
        for unfinished in final.parent.glob(".step-*.part"):
            shutil.rmtree(unfinished)
        begin(final)
    barrier()
    try:
        with one_process_is_fine():
            dcp.save(state, storage_writer=HuggingFaceStorageWriter(str(part / "state"), save_distributed=True), no_dist=not dist.is_initialized())
    except CheckpointException as failed:               # a BaseException, whose text is all ranks' tracebacks
        raise OSError(f"cannot write {part}: {next(iter(failed.failures.values()))[0]}") from failed
    write_policy(part / "policy")
    if first:
        files = {str(path.relative_to(part)): digest(path) for path in sorted(part.rglob("*")) if path.is_file()}
        (part / "meta.json").write_text(json.dumps({"step": step, **meta, "files": files}, indent=2) + "\n")
        publish(final)
        for old in steps(run_dir)[:-keep]:
            remove(old)
    barrier()


def disk_is_full(error: BaseException) -> bool:
    """Whether a failed write says that there is no room; safetensors' own error has the system's words only in its text."""
    return any(os.strerror(code) in str(error) for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))


# A process can be killed between any two of its system calls, so nothing below is ever half there under its own name: it is made under
# another, on disk, before one rename gives it its name, and one rename takes the name away before anything of it is removed.


def part_of(path: Path) -> Path:
    """The other name of a file or folder that is being made or removed."""
    return path.with_name(f".{path.name}.part")


def begin(folder: Path) -> Path:
    """An empty folder to write in until `publish(folder)`, without what an earlier process may have left there."""
    part = part_of(folder)
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    return part


def publish(path: Path) -> None:
    """Gives a finished file or folder its name, once everything in it is on disk; a folder of that name must be gone."""
    part = part_of(path)
    for written in (part, *part.rglob("*")):
        sync(written)
    os.replace(part, path)
    sync(path.parent)


def write(path: Path, text: str) -> None:
    """Writes a small text file, or replaces it."""
    part_of(path).write_text(text, encoding="utf-8")
    publish(path)


def remove(folder: Path) -> None:
    part = part_of(folder)
    shutil.rmtree(part, ignore_errors=True)
    os.replace(folder, part)
    shutil.rmtree(part)


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
