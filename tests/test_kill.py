"""kill -9 at any instant: the same command continues, and ends with what an uninterrupted run ends with, bit for bit.

    python -m pytest -m slow tests/test_kill.py                 100 random kill points; it prints what each of them hit
    python -m pytest -m slow tests/test_kill.py -k "seed00 or seed01" some of them
"""
import itertools
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_run import assert_same_run, command, here, records  # noqa: F401 (here is a fixture)
from torch.testing import assert_close

import checkpoint
import files
import ranks

pytestmark = pytest.mark.exact
LAUNCH = {1: [], 2: ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]}
VICTIMS = {1: ["worker 0", "tree"], 2: ["agent", "worker 0", "worker 1", "tree"]}
AIMS = ["eval", "sample", "reward", "update", "between", "save", "save", "save", "final", "final"]
LONGEST = {1: 7.0, 2: 14.0}                             # seconds by number of ranks: delayed kills come within so many
HANGS = 150                                             # seconds after which a test gives up


class Life:
    """One start of the command, in processes of its own, until it ends or is killed; what they print goes to a file."""

    def __init__(self, folder: Path, number: int, world: int, benchmark: str):
        self.folder = folder
        self.phase_file, self.output_file = (folder.with_name(f"{folder.name}-{number:02d}.{what}")
                                             for what in ("phase", "output"))
        self.phase_file.write_text("startup 1".ljust(16))
        with open(self.output_file, "w") as output:
            self.process = subprocess.Popen([sys.executable, *LAUNCH[world], "tests/marked.py",
                                             *command(folder, benchmark)[2:]], stdout=output, stderr=output,
                                            env={**os.environ, "PHASE": str(self.phase_file)})

    def phase(self) -> tuple[str, int]:
        """What its first rank is doing, and for which time."""
        phase, times = self.phase_file.read_text().split()
        return phase, int(times)

    def where(self) -> str:
        """Phase and step, the latter by what has been logged."""
        metrics, phase = self.folder / "metrics.jsonl", self.phase()[0]
        logged = metrics.read_text(errors="replace").count('"kind": "train"') if metrics.exists() else 0
        return f"{phase} {logged + (phase in ('sample', 'reward', 'update'))}"

    def output(self) -> str:
        return self.output_file.read_text(errors="replace")

    def alive(self) -> dict[int, str]:
        """What lives of it, pid -> role. Children have its environment, whoever is their parent by now."""
        roles = {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                environment = (entry / "environ").read_bytes().split(b"\0")
                line = (entry / "cmdline").read_bytes()
            except OSError:                             # it has ended, or is not ours
                continue
            if f"PHASE={self.phase_file}".encode() in environment:
                rank = next((int(item[5:]) for item in environment if item.startswith(b"RANK=")), 0)
                worker = f"worker {rank}" if b"marked.py" in line else "helper"
                roles[int(entry.name)] = "agent" if b"torch.distributed.run" in line else worker
        return roles

    def kill(self, victim: str) -> str:
        """SIGKILL to a role, or to all processes if none has that role yet; returns who was killed."""
        chosen = [pid for pid, role in self.alive().items() if role == victim]
        if chosen:
            send(chosen, signal.SIGKILL)
            return victim
        while alive := self.alive():
            send(alive, signal.SIGKILL)
        return "tree"

    def wait(self) -> int:
        """Exit code of the process that was started."""
        return self.process.wait(HANGS)

    def ends_within(self, seconds: float) -> bool:
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def wait_for(self, phase: str, times: int) -> bool:
        """Whether it came to this phase, for the time that is given, before it ended."""
        until(lambda: self.phase() == (phase, times) or self.process.poll() is not None, f"reached {phase} {times}",
              self, every=0.002)
        return self.process.poll() is None

    def wait_for_all(self) -> None:
        """Until none of its processes is left."""
        until(lambda: not self.alive(), "ended", self, every=0.1)


def send(pids, signum: int) -> None:
    for pid in pids:
        try:
            os.kill(pid, signum)
        except ProcessLookupError:
            pass                                        # it was faster


def until(condition: Callable[[], bool], what: str, life: Life, every: float) -> None:
    deadline = time.monotonic() + HANGS
    while not condition():
        assert time.monotonic() < deadline, f"not {what}; alive: {life.alive()}; {life.output()[-3000:]}"
        time.sleep(every)


@pytest.fixture
def start(run):
    """Starts the command; whatever still lives of it when the test is over is killed."""
    lives: list[Life] = []

    def call(folder: Path, world: int) -> Life:
        lives.append(Life(folder, len(lives), world, run[2]))
        return lives[-1]
    yield call
    for life in lives:
        life.kill("tree")
        life.wait()


def assert_same_end(reference: Path, folder: Path) -> None:
    """final/ and the newest checkpoint, samples and metrics but for wall times and run records, each step once."""
    assert_same_run(reference, folder, exact=True)
    for name in ("final", "checkpoints/step-000003/policy"):
        contents = [{path.name: path.read_bytes() for path in (x / name).iterdir()} for x in (reference, folder)]
        assert contents[0] and contents[0] == contents[1], name
    moments = [{path.name: load_file(path) for path in (x / "checkpoints/step-000003/state").iterdir()}
               for x in (reference, folder)]
    assert_close(*moments, rtol=0, atol=0)              # not bytes: the keys of a safetensors header have no order
    assert [(r["kind"], r["step"]) for r in records(folder / "metrics.jsonl") if r["kind"] != "run"] == \
        [("eval", 0), ("train", 1), ("train", 2), ("train", 3), ("eval", 3)]
    assert [(r["step"], r["position"]) for r in records(folder / "samples.jsonl")] == list(
        itertools.product((1, 2, 3), range(4)))


def run_with_kills(start: Callable[[Path, int], Life], parent: Path, reference: Path, world: int, kills: int,
                   rng: random.Random) -> list[str]:
    """Gives the same command until the run is complete, with `kills` kills on the way; returns what they hit.

    A kill is at a random delay after the start, or in a random phase. A life that ends before its kill completes
    the run: the kills that are left go to another run, in a new folder.
    """
    hits: list[str] = []
    lives: list[Life] = []
    folder = parent / "run-0"
    while True:
        orphans = {pid for life in lives for pid in life.alive()}
        life = start(folder, world)
        lives.append(life)
        if len(hits) < kills:
            delay, aim = rng.uniform(0, LONGEST[world]), None
            if rng.random() >= 0.4:
                delay, aim = rng.uniform(0, 0.05), (rng.choice(AIMS), rng.choice([1, 1, 2]))
            victim, impatient = rng.choice(VICTIMS[world]), rng.random() < 0.5
            if (aim is None or life.wait_for(*aim)) and not life.ends_within(delay):
                killed = life.kill(victim)
                hits.append(f"{life.where()}, {killed}")
                if killed == "agent" and impatient:     # the next life meets the workers
                    continue
                life.wait()
                life.wait_for_all()
                continue
        code = life.wait()
        refused = re.search(r"is being written by process (\d+)", life.output())
        for earlier in lives:
            earlier.wait_for_all()
        if refused:
            assert code != 0 and int(refused[1]) in orphans, life.output()
            continue
        assert code == 0, life.output()[-5000:]
        assert_same_end(reference, folder)
        if len(hits) == kills:
            return hits
        folder = parent / f"run-{len(lives)}"


@pytest.mark.slow
def test_killed_agent_leaves_workers_that_keep_others_out(start, run, run_on_two_ranks, tmp_path, here):  # noqa: F811
    """torchrun killed in the second save while its workers live, stopped so that they cannot end meanwhile.

    Then one worker is killed and the other ends.
    """
    folder = tmp_path / "r"
    first = start(folder, 2)
    assert first.wait_for("save", 2), first.output()
    workers = {role: pid for pid, role in first.alive().items() if role.startswith("worker")}
    send(workers.values(), signal.SIGSTOP)
    assert first.kill("agent") == "agent"
    first.wait()
    code, _, error = here(*command(folder, run[2])[2:])
    assert code == 2 and error.count("\n") == 1 and f"is being written by process {workers['worker 0']} on " in error
    assert str(folder) in error
    assert first.kill("worker 1") == "worker 1"
    send([workers["worker 0"]], signal.SIGCONT)
    first.wait_for_all()

    second = start(folder, 2)
    assert second.wait() == 0 and "continuing at step 1" in second.output(), second.output()
    assert_same_end(run_on_two_ranks[0], folder)


def test_workers_of_a_killed_agent_do_not_wait_for_it(monkeypatch):
    """torchrun killed before its workers have reached its store: they would try for half an hour, and keep the lock."""
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]                  # free again below: nobody answers
    for name, value in {"TORCHELASTIC_USE_AGENT_STORE": "True", "MASTER_ADDR": "localhost", "MASTER_PORT": port,
                        "RANK": 0, "WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(ranks, "LAUNCHER_ANSWERS", timedelta(seconds=0.5))
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *arguments, **options: None)
    with pytest.raises(torch.distributed.DistNetworkError, match=str(port)):
        ranks.start_ranks()


HITS: list[str] = []


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(25), ids=lambda seed: f"seed{seed:02d}")
def test_killed_at_random(seed, start, run, run_on_two_ranks, tmp_path, capsys):
    """Four kill points each: even seeds on one rank, odd ones on two."""
    world = 1 + seed % 2
    hits = run_with_kills(start, tmp_path, (run, run_on_two_ranks)[world - 1][0], world, 4, random.Random(seed))
    HITS.extend(hits)
    with capsys.disabled():
        print(f"\nseed {seed}, {world} rank{'s' * (world > 1)}: {'; '.join(hits)}")
        print(f"{len(HITS)} kill points so far: {dict(Counter(hit.split()[0] for hit in HITS))}, victims "
              f"{dict(Counter(hit.split(', ')[1] for hit in HITS))}")


# --------------------------------------------------------------------------------------- every call that touches a file


CALLS = {"open", "write", "close", "mkdir", "rename", "replace", "unlink", "remove", "rmdir", "fsync", "truncate",
         "ftruncate"}


def kill_points(action: Callable[[], None]) -> Iterator[int]:
    """Runs `action` in a fork of this process that is killed before its first such call, and yields.

    Then before its second, and so on, until one gets through.
    """
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
            assert n, "no call was met"
            return
        assert status == -signal.SIGKILL
        yield n


def test_a_save_killed_before_any_call_leaves_a_checkpoint(tmp_path, capsys):
    """The old one or the new one, whole, in the place where it is looked for; and the next save works and cleans up."""
    def save(step: int) -> None:
        def write_policy(folder: Path) -> None:
            folder.mkdir()
            (folder / "weights").write_text(str(step))
        checkpoint.save(tmp_path / "r", step, write_policy, {"moment": torch.full((4,), float(step))}, {"sizes": {}},
                        keep=1)

    save(1)
    shutil.copytree(tmp_path / "r", tmp_path / "saved")
    found, left = [], set()
    for _ in kill_points(lambda: save(2)):
        folder = checkpoint.newest_intact(tmp_path / "r")
        step = checkpoint.step_of(folder)
        state = {"moment": torch.zeros(4)}
        assert checkpoint.load(folder, state)["step"] == step
        assert torch.equal(state["moment"], torch.full((4,), float(step)))
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
        for _ in kill_points(lambda: files.write(path, text)):
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
    for _ in kill_points(lambda: files.remove(tmp_path / "final")):
        assert not (tmp_path / "final").exists() or len(list((tmp_path / "final").iterdir())) == 3
        make()


@pytest.fixture
def killed_before(monkeypatch, here):  # noqa: F811
    """Runs the command up to where it would give a file or folder its name."""
    def call(name: str, *arguments: str) -> None:
        inner = files.publish

        def publish(path: Path) -> None:
            if path.name == name:
                raise SystemExit("killed")
            inner(path)
        with monkeypatch.context() as patch:
            patch.setattr(files, "publish", publish)
            assert here(*arguments)[0] == "killed"
    return call


def test_a_continued_run_killed_at_its_end_is_not_complete(run, tmp_path, killed_before, here):  # noqa: F811
    """A complete run gets one more step and is killed between its last checkpoint and final/.

    The final/ of fewer steps must not pass for its end.
    """
    folder = tmp_path / "r"
    shutil.copytree(run[0], folder)
    arguments = command(folder, "eval.benchmarks=[]", "run.steps=4")[2:]
    killed_before("final", *arguments)
    code, out, _ = here(*arguments)
    assert code == 0 and "continuing at step 4" in out and "complete" not in out
    folders = [folder / "final", folder / "checkpoints/step-000004/policy"]
    weights = [(path / "model.safetensors").read_bytes() for path in folders]
    assert weights[0] == weights[1], "float32 on both sides"


def test_settings_have_no_name_before_they_are_whole(tmp_path, killed_before):
    folder = tmp_path / "r"
    killed_before("config.toml", *command(folder, "eval.benchmarks=[]")[2:])
    assert not (folder / "config.toml").exists()


def test_logs_are_on_disk_before_a_checkpoint_has_their_sizes(tmp_path, here, monkeypatch):  # noqa: F811
    """After a power cut a log that is shorter than the checkpoint says would be filled up with zero bytes."""
    synced, inner = [], files.sync
    monkeypatch.setattr(files, "sync", lambda path: (synced.append(path.name), inner(path)))
    assert here(*command(tmp_path / "r", "eval.benchmarks=[]", "run.steps=1")[2:])[0] == 0
    meta = json.loads((tmp_path / "r" / "checkpoints" / "step-000001" / "meta.json").read_text())
    assert meta["sizes"] == {name: (tmp_path / "r" / f"{name}.jsonl").stat().st_size for name in ("metrics", "samples")}
    assert max(synced.index("metrics.jsonl"), synced.index("samples.jsonl")) < synced.index("meta.json")
