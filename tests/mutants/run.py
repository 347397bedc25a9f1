"""Tests the tests: breaks a copy of the code in one known way after another and lists the test that notices.

    python tests/mutants/run.py [NAME or AREA ...]          all of them: half an hour on one core

mutants.toml holds the broken lines. A mutant must be caught by a test that compares values. Tests marked `smoke` only
see that the real command runs and what it prints: they come last and do not count. Tests marked `exact` run the whole
loop and compare all it computes: they count for the area `loop`, which nothing smaller can see, and for no other. A
catching test must also pass on the code as it is. Exits with 1 if a mutant survives, is caught by a test that does not
count, or hangs.
"""
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
AREAS = {                                               # of mutants.toml: file or folder changed, tests to run first
    "model": ("model.py", ["tests/test_model.py", "tests/test_sampler.py"]),
    "stream": ("stream.py", ["tests/test_model.py", "tests/test_gpu.py"]),
    "sampler": ("sampler.py", ["tests/test_sampler.py", "tests/test_gpu.py"]),
    "reward": ("reward.py", ["tests/test_reward.py"]),
    "embedder": ("embedder.py", ["tests/test_embedder.py"]),
    "answers": ("answers", ["tests/test_answers.py", "tests/test_grader.py"]),
    "grader": ("grader.py", ["tests/test_grader.py"]),
    "learner": ("learner.py", ["tests/test_learner.py", "tests/test_gpu.py"]),
    "ranks": ("ranks.py", ["tests/test_ranks.py", "tests/test_learner.py", "tests/test_gpu.py"]),
    "loop": ("dra_grpo.py", ["tests/test_loop.py", "tests/test_run.py", "tests/test_gpu.py"]),
    "settings": ("dra_grpo.py", ["tests/test_settings.py", "tests/test_plan.py"]),
    "checkpoint": ("checkpoint.py", ["tests/test_checkpoint.py", "tests/test_identity.py"]),
    "files": ("files.py", ["tests/test_files.py", "tests/test_checkpoint.py", "tests/test_compare.py"]),
    "plan": ("plan", ["tests/test_memory.py", "tests/test_plan.py"]),
    "config": ("config.py", ["tests/test_config.py"]),
    "data": ("data.py", ["tests/test_data.py"]),
    "prompts": ("prompts.py", ["tests/test_prompts.py"]),
    "eval_samples": ("eval_samples.py", ["tests/test_correct.py", "tests/test_eval.py"]),
    "eval": ("eval.py", ["tests/test_eval.py", "tests/test_plan.py"]),
    "metrics": ("metrics.py", ["tests/test_metrics.py"]),
    "compare": ("report/compare.py", ["tests/test_compare.py"]),
    "regrade": ("report/regrade.py", ["tests/test_compare.py"]),
    "read": ("report/read.py", ["tests/test_compare.py", "tests/test_kernel.py"]),
    "kernel": ("report/kernel.py", ["tests/test_kernel.py"]),
    "page": ("report/page.py", ["tests/test_page.py"]),
    "real_lm": ("real_lm", ["tests/test_real_lm.py"]),
    "template": ("report/page.html", ["tests/test_page.py"]),
}
KINDS = {"unit": "not smoke and not exact", "exact": "exact", "smoke": "smoke and not exact"}
LIMIT_S = 600                                           # of one call of pytest; a test that hangs has caught nothing


@dataclass(frozen=True)
class Mutant:
    area: str
    name: str
    pitfall: str
    old: str
    new: str

    @property
    def file(self) -> str:
        """The file it changes; where the area is a folder, the one that has the old text."""
        place = AREAS[self.area][0]
        if not (ROOT / place).is_dir():
            return place
        found = [path for path in sorted((ROOT / place).glob("*.py")) if self.old in path.read_text(encoding="utf-8")]
        if len(found) != 1:
            raise ValueError(f"mutant {self.name!r}: its old text occurs in {len(found)} files of {place}/, not one: "
                             f"{self.old!r}")
        return str(found[0].relative_to(ROOT))

    def apply(self, source: str) -> str:
        """The changed source; ValueError naming a mutant whose old text does not occur once, or that is no Python."""
        count = source.count(self.old)
        if count != 1:
            raise ValueError(f"mutant {self.name!r}: its old text occurs {count} times in {self.file}, not once: "
                             f"{self.old!r}")
        changed = source.replace(self.old, self.new)
        if self.file.endswith(".py"):
            try:
                compile(changed, self.file, "exec")
            except SyntaxError as error:
                raise ValueError(f"mutant {self.name!r} is not Python: {error}") from None
        return changed


def load_mutants() -> list[Mutant]:
    areas = tomllib.loads(Path(__file__).with_name("mutants.toml").read_text(encoding="utf-8"))
    return [Mutant(area, **fields) for area, mutants in areas.items() for fields in mutants]


def copy_code(folder: Path) -> None:
    """The files git knows, as they are in the working tree."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in listed.split("\0")[:-1]:
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)


def failures(folder: Path, *arguments: str) -> list[str] | None:
    """Ids of the tests that fail; None if pytest ran into the time limit.

    ValueError if it could not run the tests at all.
    """
    command = [sys.executable, "-m", "pytest", "--tb=no", "-rfE", "-p", "no:cacheprovider", "-n", "0", *arguments]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                               start_new_session=True)
    try:
        out, _ = process.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGTERM)          # torchrun hands it on to its workers, which are in other groups
        with suppress(subprocess.TimeoutExpired):
            process.wait(40)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return None
    if process.returncode not in (0, 1, 5):             # 5: no test of this kind in these files
        raise ValueError(f"pytest {' '.join(arguments)} could not run:\n{out}")
    return re.findall(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", out, flags=re.MULTILINE)


def catch(mutant: Mutant) -> tuple[str, str]:
    """(kind, id) of the first test that fails on a copy with the mutant.

    The kind is "" if none does, "hang" if one does not end.
    """
    file, first = mutant.file, AREAS[mutant.area][1]
    with tempfile.TemporaryDirectory(prefix="mutant-") as scratch:
        folder = Path(scratch)
        copy_code(folder)
        (folder / file).write_text(mutant.apply((folder / file).read_text(encoding="utf-8")), encoding="utf-8")
        # test_mutants.py would find the mutant's old text gone, whatever the mutant does
        others = [f"tests/{path.name}" for path in sorted((folder / "tests").glob("test_*.py"))
                  if f"tests/{path.name}" not in (*first, "tests/test_mutants.py")]
        kinds = ("exact", "unit", "smoke") if mutant.area == "loop" else ("unit", "exact", "smoke")
        for kind in kinds:
            for files in (first, others):
                failed = failures(folder, "-x", "-m", f"not slow and ({KINDS[kind]})", *files)
                if failed is None:
                    return "hang", " ".join(files)
                if failed:
                    return kind, failed[0]
    return "", "no test"


def failing_anyway(functions: list[str]) -> set[str]:
    """Those of the catching test functions that fail on the code as it is."""
    with tempfile.TemporaryDirectory(prefix="mutant-none-") as scratch:
        copy_code(Path(scratch))
        failed = failures(Path(scratch), *functions) if functions else []
    if failed is None:
        raise ValueError("the catching tests do not end on the code as it is")
    return {function_of(test) for test in failed}


def function_of(test: str) -> str:
    return test.partition("[")[0]


def counts(mutant: Mutant, kind: str) -> bool:
    return kind == "unit" or kind == "exact" and mutant.area == "loop"


def main(names: list[str]) -> int:
    mutants = load_mutants()
    unknown = set(names) - {m.name for m in mutants} - set(AREAS)
    if unknown:
        raise ValueError(f"no mutant or area is called {', '.join(sorted(unknown))}")
    chosen = [m for m in mutants if not names or m.name in names or m.area in names]
    for mutant in chosen:                               # stale ones at once, not after half an hour
        mutant.apply((ROOT / mutant.file).read_text(encoding="utf-8"))
    start, caught = time.monotonic(), {}
    for mutant in chosen:
        kind, test = catch(mutant)
        if counts(mutant, kind):
            caught[mutant.name] = function_of(test)
        note = "" if mutant.name in caught else f"   <- NOT CAUGHT ({kind or 'survives'})"
        print(f"{mutant.area:<11}{mutant.name:<34}{test.removeprefix('tests/')}{note}", flush=True)
    failing = failing_anyway(sorted(set(caught.values())))
    for name in [name for name, function in caught.items() if function in failing]:
        print(f"{name}: NOT CAUGHT, {caught.pop(name)} fails without a mutant too")
    print(f"{len(caught)} of {len(chosen)} caught, in {(time.monotonic() - start) / 60:.0f} minutes")
    return 0 if len(caught) == len(chosen) else 1


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except ValueError as error:
        sys.exit(f"error: {error}")
