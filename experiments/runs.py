"""Runs of the plan: the trainer's own command for each, and what is kept of it, a small JSON Lines file.

A run whose record exists is skipped; one that was stopped goes on where its folder says, as every run of the trainer
does. So whatever ends the runner, the same command continues, and what is finished stays. The record has no samples:
figures of the first and the last evaluation, means over the second half of the steps, curves of ten points, commit.
"""
import os
import signal
import subprocess
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import files
from config import load
from dra_grpo import Config
from metrics import mean

HERE = Path(__file__).parent
RECORDS = Path("experiments/records")
PROGRAM = [sys.executable, "dra_grpo.py"]
POINTS = 10                                             # of a run's curves
EVAL = ("step", "benchmark", "n", "samples", "accuracy", "accuracy_se", "pass_at_k", "length", "truncated",
        "effective_strategies", "effective_strategies_m", "effective_strategies_problems",
        "effective_strategies_pooled", "strategies", "labels")
TRAIN = ("accuracy", "entropy", "modes", "kl", "grad_norm", "length", "smi", "similarity", "weight", "zero_advantage",
         "gap", "sample_s", "grade_s", "embed_s", "dra_s", "update_s", "tokens_per_s")
CURVES = ("accuracy", "entropy", "modes")


@dataclass(frozen=True)
class Run:
    """One training run: an arm in a setting with a seed."""
    setting: str
    arm: str
    seed: int
    config: str
    overrides: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.setting}-{self.arm}-seed{self.seed}"

    def arguments(self, folder: Path) -> list[str]:
        return ["--config", self.config, *self.overrides, f"run.seed={self.seed}", f"run.dir={folder / self.name}"]


def read_plan(path: Path = HERE / "plan.toml") -> dict:
    """The plan, with every arm of every setting checked against the trainer's own settings; ValueError otherwise."""
    plan = tomllib.loads(path.read_text(encoding="utf-8"))
    for name, setting in plan["settings"].items():
        if unknown := set(setting["arms"]) - set(plan["arms"]):
            raise ValueError(f"{path}: settings.{name} names arms that are not there: {', '.join(sorted(unknown))}")
    for run in runs_of(plan):
        load(Config, run.config, run.overrides)
    return plan


def runs_of(plan: dict, quick: bool = False, seeds: int = 0) -> list[Run]:
    """All runs in the order they are made: seed by seed, settings in the plan's order.

    `quick`: the plan's small version. `seeds`: at most so many of each arm, 0 for the plan's.
    """
    small, final, runs = plan["quick"], plan["finalists"], []
    for name, setting in plan["settings"].items():
        if quick and name not in small["settings"]:
            continue
        for arm in [arm for arm in setting["arms"] if not quick or arm in small["arms"]]:
            overrides = (*setting["overrides"], *plan["overrides"], *plan["arms"][arm], *small["overrides"] * quick)
            planned = 1 if quick else final["seeds"] if arm in final["arms"] else plan["seeds"]
            count = min(planned, seeds or planned, setting.get("seeds", planned))
            runs += [Run(name, arm, seed, setting["config"], overrides) for seed in range(count)]
    return sorted(runs, key=lambda run: run.seed)


# ------------------------------------------------------------------------------------------------ what is kept


def pushes(groups: Sequence[dict]) -> dict:
    """Where the advantages of groups, records of samples.jsonl, go.

    `right_pushed_down`: share of the right answers with an advantage below 0. Of the sum of |A|: `abs_right_down`, the
    share that pushes right answers down, and `abs_all_right`, that in groups that are all right, which are
    `groups_all_right` of all. `push`: the sum of advantages of each strategy, per group and completion.
    """
    right = down = whole = 0
    total = right_down = all_right = 0.0
    push: Counter = Counter()
    for group in groups:
        completions = group["completions"]
        full = all(completion["correct"] for completion in completions)
        whole += full
        for completion in completions:
            advantage = completion["advantage"]
            total += abs(advantage)
            all_right += abs(advantage) * full
            push[str(completion.get("label"))] += advantage / len(completions) / len(groups)
            if completion["correct"]:
                right += 1
                down += advantage < -1e-6               # below float32 rounding is 0
                right_down += max(0.0, -advantage)
    return {"right_pushed_down": down / max(right, 1), "abs_right_down": right_down / (total or 1.0),
            "abs_all_right": all_right / (total or 1.0), "groups_all_right": whole / len(groups), "push": dict(push)}


def record_of(run: Run, folder: Path, commit: str) -> list[dict]:
    """The record of a finished run in `folder`: lines of kind run, eval (before and after) and train."""
    records = [record for _, record in files.read_jsonl(folder / "metrics.jsonl")]
    first = next(record for record in records if record["kind"] == "run")
    evals = [record for record in records if record["kind"] == "eval"]
    steps = [record for record in records if record["kind"] == "train"]
    last = steps[-1]["step"]
    late = [record for record in steps if record["step"] > last // 2]
    groups = [group for _, group in files.read_jsonl(folder / "samples.jsonl") if group["step"] > last // 2]
    tenths = [[record for record in steps if (record["step"] - 1) * POINTS // last == i] for i in range(POINTS)]
    curves = {key: [mean(record.get(key) for record in tenth) for tenth in tenths] for key in CURVES}
    seconds = [record["sample_s"] + record["reward_s"] + record["update_s"] for record in steps]
    about = {"name": run.name, "setting": run.setting, "arm": run.arm, "seed": run.seed, "config": run.config,
             "overrides": list(run.overrides), "commit": commit,
             **{key: first.get(key) for key in ("torch", "python", "device", "time")}}
    return rounded([
        {"kind": "run", **about},
        *({"kind": "eval", **{key: record.get(key) for key in EVAL}} for record in (evals[0], evals[-1])),
        {"kind": "train", "steps": last, "from": last // 2 + 1,
         **{key: mean(record.get(key) for record in late) for key in TRAIN},
         "step_s": sorted(seconds)[len(seconds) // 2], **pushes(groups), "curves": curves}])


def rounded(value: object) -> object:
    """Floats to six significant digits: what a table shows, and lines that stay short."""
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    if isinstance(value, list):
        return [rounded(part) for part in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def commit_of_code() -> str:
    """HEAD, with "+" if tracked files other than records and what is made of them differ from it."""
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!experiments/records", ":!docs")
    return git("rev-parse", "--short=12", "HEAD") + "+" * bool(changed)


# ------------------------------------------------------------------------------------------------ the runner


def done(run: Run, records: Path) -> bool:
    """Whether there is a record of the run; ValueError if it was made with other settings than the plan has now."""
    path = records / f"{run.name}.jsonl"
    if not path.exists():
        return False
    _, about = next(files.read_jsonl(path))
    if (about["config"], about["overrides"]) != (run.config, list(run.overrides)):
        raise ValueError(f"{path} was made with {about['config']} {' '.join(about['overrides'])}, the plan now has "
                         f"{run.config} {' '.join(run.overrides)}; remove the record, or change the plan back")
    return True


def start(run: Run, folder: Path) -> subprocess.Popen:
    """One thread each, so that a run's figures do not depend on how many run at a time; its output goes into a file."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"{run.name}.log", "ab") as log:
        return subprocess.Popen([*PROGRAM, *run.arguments(folder)], stdout=log, stderr=log, env=environment)


def finish(run: Run, folder: Path, records: Path, commit: str, keep: bool) -> None:
    records.mkdir(parents=True, exist_ok=True)
    files.write(records / f"{run.name}.jsonl", files.json_lines(record_of(run, folder / run.name, commit)).decode())
    if not keep:
        files.remove(folder / run.name)
        (folder / f"{run.name}.log").unlink(missing_ok=True)


def make(runs: Sequence[Run], folder: Path, records: Path, jobs: int = 1, most: int = 0, keep: bool = False) -> int:
    """Makes all runs that have no record, `jobs` at a time and, if `most` is not 0, at most so many.

    A run that fails is named with the last line of its log, and the others go on. Returns how many failed.
    """
    waiting = [run for run in runs if not done(run, records)]
    print(f"{len(runs) - len(waiting)} of {len(runs)} runs have a record in {records}", flush=True)
    waiting, running, failed, commit = waiting[: most or None], {}, 0, commit_of_code()

    def stop(signum: int, _) -> None:
        raise SystemExit(128 + signum)

    before = [(s, signal.signal(s, stop)) for s in (signal.SIGINT, signal.SIGTERM)]
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                run = waiting.pop(0)
                running[run] = start(run, folder), time.time()
            for run in [run for run, (process, _) in running.items() if process.poll() is not None]:
                process, begun = running.pop(run)
                if process.returncode == 0:
                    finish(run, folder, records, commit, keep)
                    print(f"{run.name}: {time.time() - begun:.0f} s; {len(waiting)} to go", flush=True)
                else:
                    failed += 1
                    lines = (folder / f"{run.name}.log").read_text(encoding="utf-8", errors="replace").splitlines()
                    print(f"{run.name} ended with {process.returncode}: {(lines or ['no output'])[-1]}", flush=True)
            time.sleep(0.1)
    finally:
        for process, _ in running.values():             # each saves what it has, and the next call continues it
            process.terminate()
        for process, _ in running.values():
            process.wait()
        for s, handler in before:
            signal.signal(s, handler)
    return failed
