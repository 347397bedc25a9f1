"""kill -9 at any instant: whatever stands under its own name in a run folder is whole."""
import itertools
import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from test_run import command, here  # noqa: F401 (here is a fixture)

import checkpoint

CALLS = {"open", "write", "close", "mkdir", "rename", "replace", "unlink", "remove", "rmdir", "fsync", "truncate", "ftruncate"}


def kill_points(action: Callable[[], None]) -> Iterator[int]:
    """Runs `action` in a fork of this process that is killed before its first such call, yields; before its second, yields; until one gets through."""
    for n in itertools.count():
        pid = os.fork()
        if pid == 0:
            left = n

            def count(frame, event, function):
                nonlocal left
                if event == "c_call" and function.__name__ in CALLS:
                    if left == 0:
                        os.kill(os.getpid(), signal.SIGKILL)
                    left -= 1

            code = 1
            try:
                sys.setprofile(count)
                action()
                code = 0
            except BaseException:
                sys.setprofile(None)
                traceback.print_exc()
            finally:
                os._exit(code)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if status == 0:
            assert n > 3, "no call was met"
            return
        assert status == -signal.SIGKILL
        yield n


def test_a_save_killed_before_any_call_leaves_a_checkpoint(tmp_path, capsys):
    """The old one or the new one, whole, in the place where it is looked for; and the next save works and cleans up."""
    def save(step: int) -> None:
        def write_policy(folder: Path) -> None:
            folder.mkdir()
            (folder / "weights").write_text(str(step))
        checkpoint.save(tmp_path / "r", step, write_policy, {"moment": torch.full((4,), float(step))}, {"sizes": {}}, keep=1)

    save(1)
    shutil.copytree(tmp_path / "r", tmp_path / "saved")
    found, left = [], set()
    for _ in kill_points(lambda: save(2)):
        folder = checkpoint.newest_intact(tmp_path / "r")
        step = checkpoint.step_of(folder)
        state = {"moment": torch.zeros(4)}
        assert checkpoint.load(folder, state)["step"] == step and torch.equal(state["moment"], torch.full((4,), float(step)))
        assert (folder / "policy" / "weights").read_text() == str(step)
        found.append(step)
        names = frozenset(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
        if names not in left:
            left.add(names)
            save(3)
            assert [path.name for path in (tmp_path / "r" / "checkpoints").iterdir()] == ["step-000003"]
        shutil.rmtree(tmp_path / "r")
        shutil.copytree(tmp_path / "saved", tmp_path / "r")
    assert found == sorted(found) and set(found) == {1, 2}, "the rename decides"
    assert not capsys.readouterr().err, "nothing was found damaged"


def test_a_small_file_killed_before_any_call_is_the_old_one_or_the_new_one(tmp_path):
    """config.toml: half of it would keep the run from ever starting again."""
    path = tmp_path / "config.toml"
    for text in ("old", "new"):
        before = path.read_text() if path.exists() else None
        seen = set()
        for _ in kill_points(lambda: checkpoint.write(path, text)):
            seen.add(path.read_text() if path.exists() else None)
        assert seen == {before, text}


def test_a_folder_removed_is_gone_under_its_name_at_once(tmp_path):
    """A half-removed final/ would pass for the end of the run."""
    def make() -> Path:
        shutil.rmtree(tmp_path / "final", ignore_errors=True)
        (tmp_path / "final").mkdir()
        for name in "abc":
            (tmp_path / "final" / name).write_text(name)
        return tmp_path / "final"

    make()
    for _ in kill_points(lambda: checkpoint.remove(tmp_path / "final")):
        assert not (tmp_path / "final").exists() or len(list((tmp_path / "final").iterdir())) == 3
        make()


@pytest.fixture
def killed_before(monkeypatch, here):  # noqa: F811
    """Runs the command up to where it would give a file or folder its name."""
    def call(name: str, *arguments: str) -> None:
        inner = checkpoint.publish

        def publish(path: Path) -> None:
            if path.name == name:
                raise SystemExit("killed")
            inner(path)
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "publish", publish)
            assert here(*arguments)[0] == "killed"
    return call


def test_a_continued_run_killed_at_its_end_is_not_complete(run, tmp_path, killed_before, here):  # noqa: F811
    """A complete run gets one more step and is killed between its last checkpoint and final/: the final/ of fewer steps must not pass for its end."""
    folder = tmp_path / "r"
    shutil.copytree(run[0], folder)
    arguments = command(folder, "eval.benchmarks=[]", "run.steps=4")[2:]
    killed_before("final", *arguments)
    code, out, _ = here(*arguments)
    assert code == 0 and "continuing at step 4" in out and "complete" not in out
    files = [(folder / name / "model.safetensors").read_bytes() for name in ("final", "checkpoints/step-000004/policy")]
    assert files[0] == files[1], "float32 on both sides"


def test_settings_have_no_name_before_they_are_whole(tmp_path, killed_before):
    folder = tmp_path / "r"
    killed_before("config.toml", *command(folder, "eval.benchmarks=[]")[2:])
    assert not (folder / "config.toml").exists()


def test_logs_are_on_disk_before_a_checkpoint_has_their_sizes(tmp_path, here, monkeypatch):  # noqa: F811
    """After a power cut a log that is shorter than the checkpoint says would be filled up with zero bytes."""
    synced, inner = [], checkpoint.sync
    monkeypatch.setattr(checkpoint, "sync", lambda path: (synced.append(path.name), inner(path)))
    assert here(*command(tmp_path / "r", "eval.benchmarks=[]", "run.steps=1")[2:])[0] == 0
    meta = json.loads((tmp_path / "r" / "checkpoints" / "step-000001" / "meta.json").read_text())
    assert meta["sizes"] == {name: (tmp_path / "r" / f"{name}.jsonl").stat().st_size for name in ("metrics", "samples")}
    assert max(synced.index("metrics.jsonl"), synced.index("samples.jsonl")) < synced.index("meta.json")
