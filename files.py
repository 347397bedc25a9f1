"""Files that are whole or not there: a lock on a folder, atomic writes, JSON Lines. Standard library only.

A process can be killed between any two of its system calls, so nothing is ever half written under its own name: it is
made under another, on disk, before one rename gives it its name, and one rename takes the name away before anything of
it is removed. Imports nothing of ours.
"""
import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def lock(folder: Path, key: str = "run.dir") -> Iterator[None]:
    """Makes this process the only writer of the folder that config key `key` names; the lock ends with the process.

    Raises ValueError naming the process that holds the lock, or what keeps the folder from being written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise ValueError(f"{key} = {str(folder)!r} cannot be written: {error.strerror}; name another {key}") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(handle, 200).decode() or "another process"
            raise ValueError(f"{key} = {str(folder)!r} is being written by {owner}; wait until it has ended, stop it, "
                             f"or name another {key}") from None
        os.ftruncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {os.uname().nodename}".encode())
        yield
    finally:
        os.close(handle)


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
    """Gives a finished file or folder its name, once all of it is on disk; there must be no folder of that name."""
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


def sync(path: Path) -> None:
    """Forces a file or folder to disk, so that a rename never outlives the data it names."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def disk_is_full(error: BaseException) -> bool:
    """Whether a failed write had no room left; safetensors' own error has the system's words only in its text."""
    return any(os.strerror(code) in str(error) for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))


# ------------------------------------------------------------------------------------------------ JSON Lines


def json_lines(records: Iterable[dict]) -> bytes:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


def write_jsonl(path: Path, records: Iterable[dict]) -> None:
    """Writes a whole file, or replaces it."""
    part_of(path).write_bytes(json_lines(records))
    publish(path)


def append_jsonl(path: Path, records: Iterable[dict]) -> None:
    with open(path, "ab") as file:
        file.write(json_lines(records))


def read_jsonl(path: Path) -> Iterator[tuple[str, object]]:
    """("file, line n", value) of every line; ValueError for a missing or empty file and a line that is not JSON.

    A last line without its newline that cannot be read is being written this moment, and is left out.
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    number = 0
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            try:
                yield f"{path}, line {number}", json.loads(line)
            except (ValueError, RecursionError) as error:       # RecursionError: nested a thousand deep
                if line.endswith("\n"):
                    raise ValueError(f"{path}, line {number}: not valid JSON: {error}") from None
    if not number:
        raise ValueError(f"{path} is empty")


def require(record: object, schema: dict, where: str, what: str) -> None:
    """ValueError, saying that `where` there is no `what`, unless `record` has the keys and types of `schema`."""
    if not isinstance(record, dict):
        raise ValueError(f"{where}: {json.dumps(record)[:60]} is not {what}")
    for key, kind in schema.items():
        if not isinstance(record.get(key), kind) or isinstance(record[key], bool) != (kind is bool):
            problem = f"is {json.dumps(record[key])[:60]}" if key in record else "is missing"
            raise ValueError(f"{where}: {key!r} {problem}, so this is not {what}")
