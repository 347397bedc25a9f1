"""Checkpoints of a run: RUN/checkpoints/step-000050/{policy/, state/, meta.json}, safetensors and JSON only.

`policy/` is a Hugging Face folder with the master weights, `state/` the optimizer's tensors written shard by shard
through torch.distributed.checkpoint (it loads on another number of ranks), `meta.json` the step and whatever the run
adds. A checkpoint is written to a temporary folder and renamed when it is complete and on disk; meta.json has the
SHA-256 of every other file; one that is damaged later is renamed, and the one before it is used. A run goes on only
with the files it was made of, by their SHA-256 too (`identity_of_run`).
"""
import hashlib
import json
import shutil
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter

import files
from data import benchmark_name, files_of


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


# -------------------------------------------------------------------------------------- identity
# Settings name files by paths, where other files may stand when a run goes on. An identity is a dict {"section.key:
# file": SHA-256}. The files are those named by settings, not what they import or include; a data set from the hub
# counts as its problems and answers, a model from the hub as the files fetched.

POLICY_FILES = (".safetensors", ".json", ".jinja", ".model", ".txt")    # of a policy's folder: those that matter


def identity_of_policy(folder: str) -> dict[str, str]:
    """The digest of each file of a policy's folder, by its name."""
    paths = [path for path in sorted(Path(folder).iterdir()) if path.suffix in POLICY_FILES and path.is_file()]
    return {path.name: files.digest(path) for path in paths}


def identity_of_functions(config) -> dict[str, str]:
    """The files of the user's functions and chat template that the settings of training or of an evaluation name."""
    named = [("eval.label", config.eval.label), ("reward.correct", config.reward.correct)]
    named += [("reward.functions", name) for name in getattr(config.reward, "functions", ()) if ":" in name]
    named += [(f"dra.{key}", getattr(config.dra, key)) for key in ("weights", "advantages") if hasattr(config, "dra")]
    found = [(key, spec.rpartition(":")[0]) for key, spec in named if spec]
    if config.data.chat_template not in ("", "none"):
        found.append(("data.chat_template", config.data.chat_template))
    return {f"{key}: {file}": files.digest(Path(file)) for key, file in found}


def identity_of_rows(rows: Iterable[dict]) -> str:
    """Of problems, as JSON lines."""
    return hashlib.sha256(files.json_lines(rows)).hexdigest()


def identity_of_source(key: str, source: str | Sequence[str], rows: Sequence[dict]) -> dict[str, str]:
    """The files of a source of problems; `rows` is what was read from all of it."""
    named = files_of(source)
    known = ""
    if any(file.startswith("hub:") for file in named):
        known = identity_of_rows({name: row[name] for name in ("id", "problem", "answer")} for row in rows)
    return {f"{key}: {file}": known if file.startswith("hub:") else files.digest(Path(file)) for file in named}


def identity_of_run(config, folder: str, problems: Sequence[dict], benchmarks: dict[str, list[dict]]) -> dict[str, str]:
    """All that decides about the course of a training run with the policy in `folder`."""
    found = {f"model.path: {name}": digest for name, digest in identity_of_policy(folder).items()}
    found |= identity_of_source("data.train", config.data.train, problems) | identity_of_functions(config)
    for benchmark in config.eval.benchmarks:
        name, source = benchmark_name(benchmark)
        found |= identity_of_source("eval.benchmarks", source, benchmarks[name])
    if config.dra.enabled and Path(config.dra.embedder).is_dir():
        paths = [path for path in sorted(Path(config.dra.embedder).rglob("*")) if path.is_file()]
        found |= {f"dra.embedder: {path}": files.digest(path) for path in paths}
    return found


def differences(before: dict[str, str], now: dict[str, str], may_change: str = " ") -> str:
    """What of one identity is not that of another, in words, "" for nothing. Of settings that begin with `may_change`,
    only files that both have are compared."""
    return "; ".join(f"{name} is " + ("gone" if name not in now else "new" if name not in before else "another")
                     for name in {**before, **now} if before.get(name) != now.get(name)
                     and not (name.startswith(may_change) and (name not in before or name not in now)))
