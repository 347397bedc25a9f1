"""grader.py: that no answer can stall or kill the batch, and that verdicts go to their answers."""
import os
import shutil
import signal
from pathlib import Path
from unittest.mock import patch

import pytest

from answers import Grade, grade
from benchmarks.grader import HOSTILE
from conftest import ROOT
from grader import Grader


def test_batch_keeps_order_and_agrees_with_grade():
    texts = ["\\boxed{1}", "none", "\\boxed{\\frac{2}{4}}", "\\boxed{x}", "\\boxed{2}"]
    golds = ["1", "1", "1/2", "1", "1"]
    with Grader(2) as grader:
        grades = grader.grade_batch(texts, golds)
        assert [item.correct for item in grades] == [True, False, True, False, False]
        assert [item.reason for item in grades][:3] == ["equal", "no box", "equal"]
        assert grades == [grade(text, gold) for text, gold in zip(texts, golds)]
        assert grader.grade_batch(texts, golds) == grades, "the cache answers the same"


def test_of_several_golds_one_is_to_be_equalled():
    """As text or by algebra, whichever place it has; a wrong answer is told as against the first."""
    texts = ["\\boxed{139.0}", "\\boxed{\\sqrt{4}}", "\\boxed{1+x}", "\\boxed{3}", "none"]
    golds = [["139", "139.0"], ["x", "2"], ["x+1", "y"], ["1", "2"], ["1", "2"]]
    with Grader(1) as grader:
        assert [(grade.correct, grade.reason) for grade in grader.grade_batch(texts, golds)] == [
            (True, "equal"), (True, "equal"), (True, "equal"), (False, "different"), (False, "no box")]


def test_a_silent_worker_is_given_up(tmp_path, monkeypatch):
    """A worker that falls silent for good, with a deadline far shorter than its life.

    Waiting for its end instead would read as a crash.
    """
    (tmp_path / "silent.py").write_text("import time\nprint('ready', flush=True)\ntime.sleep(20)\n")
    monkeypatch.setattr("grader.__file__", str(tmp_path / "silent.py"))
    with Grader(1, timeout_s=0.1) as grader:
        assert grader.grade_batch(["\\boxed{x}"], ["y"]) == [Grade(False, "timeout", "x")]
        assert grader.idle[0].process is None, "its late verdict cannot be taken for that of the next answer"


def test_hostile_answers_are_wrong_and_the_next_ones_are_graded():
    """More than a hundred bombs of every kind: none is right, none raises, and right answers around them are right."""
    right = "\\boxed{\\frac{84}{2}+0}"
    texts = [right, *HOSTILE[:60], right, *HOSTILE[60:], "so \\boxed{42}",
             right.replace("84", "168").replace("{2}", "{4}")]
    with Grader(2) as grader:
        grades = grader.grade_batch(texts, ["42"] * len(texts))
    assert len(HOSTILE) > 100 and sum(item.reason == "too large" for item in grades) > 50
    reasons = {item.reason for item in grades}
    assert not {"timeout", "crash"} & reasons, "they are bounded by their size, not by the clock"
    assert [text for text, item in zip(texts, grades) if item.correct] == [texts[0], texts[61], *texts[-2:]]


@pytest.mark.parametrize(("line", "deadline", "reason"), [
    ("time.sleep(600)", 1.0, "timeout"), ("os.kill(os.getpid(), 9)", 60.0, "crash"), ("bytes(10**10)", 60.0, "crash"),
    ("sys.exit(3)", 60.0, "crash"), ("1 / 0", 60.0, "unparsed")])
def test_a_process_that_stalls_or_dies_is_replaced(tmp_path, line, deadline, reason):
    """The worker runs the files with one line added where the answer is x; its next fork grades the next answers.

    Where its end is tested and not the deadline, the deadline is far away: a busy machine may not make a timeout of a
    crash.
    """
    shutil.copy(ROOT / "grader.py", tmp_path)
    file = shutil.copytree(ROOT / "answers", tmp_path / "answers") / "__init__.py"
    source = file.read_text(encoding="utf-8")
    first = "    words, gold_words = as_words(answer), as_words(gold)\n"
    assert source.count(first) == 1
    stalling = source.replace(first, f"    import os, sys, time\n    if answer == 'x':\n        {line}\n{first}")
    file.write_text(stalling, encoding="utf-8")
    with patch("grader.__file__", str(tmp_path / "grader.py")), Grader(1, timeout_s=deadline) as grader:
        grades = grader.grade_batch(["\\boxed{x}", "\\boxed{\\sqrt{4}}", "\\boxed{x}", "\\boxed{\\sqrt{9}}"],
                                    ["y", "2", "z", "3"])
        first = grader.idle[0].process.pid
        assert grader.grade_batch(["\\boxed{x}"], ["w"])[0].reason == reason
        assert grader.idle[0].process.pid == first, "without importing again"
    assert [item.reason for item in grades] == [reason, "equal", reason, "equal"] and grades[0].answer == "x"


def test_the_cache_forgets_the_oldest(monkeypatch):
    monkeypatch.setattr("grader.CACHED", 2)
    with Grader(1) as grader:
        answers = [f"\\boxed{{\\sqrt{{{n}}}}}" for n in (4, 9, 16)]
        assert all(item.correct for item in grader.grade_batch(answers, ["2", "3", "4"]))
        assert [question.gold for question in grader.cache] == ["3", "4"]


def test_a_process_killed_between_two_questions_costs_no_verdict():
    """As the out-of-memory killer does: no report or late reply of it may be taken for the reply to the next answer."""
    answers = [f"\\boxed{{\\sqrt{{{n * n}}}}}" for n in range(2, 26)]
    with Grader(1) as grader:
        grader.grade_batch(["\\boxed{\\sqrt{16}}"], ["4"])
        for start in range(0, 24, 3):
            parent = grader.idle[0].process.pid
            children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
            os.kill(int(children[0]), signal.SIGKILL)
            golds = [str(n + 2 if n % 2 else n + 3) for n in range(start, start + 3)]
            grades = grader.grade_batch(answers[start : start + 3], golds)
            assert [item.correct for item in grades if item.reason != "crash"] == [
                n % 2 == 1 for n, item in zip(range(start, start + 3), grades) if item.reason != "crash"]
            assert sum(item.reason == "crash" for item in grades) <= 1


@pytest.mark.parametrize("reply", ["no json", "[1]", "\\udcff", "half a line without an end"])
def test_a_worker_that_talks_nonsense_is_replaced(tmp_path, monkeypatch, reply):
    (tmp_path / "nonsense.py").write_text(
        f"import sys\nprint('ready', flush=True)\nsys.stdin.readline()\nprint({reply!r}, "
        f"end={'' if 'half' in reply else chr(10)!r}, flush=True)\n"
                                          "sys.stdin.readline()\n")
    monkeypatch.setattr("grader.__file__", str(tmp_path / "nonsense.py"))
    monkeypatch.setattr("grader.GRACE_S", 0.1)
    with Grader(1, timeout_s=0.2) as grader:
        assert grader.grade_batch(["\\boxed{x}"], ["y"])[0].reason in ("crash", "timeout")
        assert grader.idle[0].process is None


def test_a_worker_that_cannot_start_is_an_error(tmp_path, monkeypatch):
    """Not a run in which every answer that needs algebra is wrong."""
    (tmp_path / "broken.py").write_text("raise SystemExit('no sympy here')\n")
    monkeypatch.setattr("grader.__file__", str(tmp_path / "broken.py"))
    with Grader(1) as grader, pytest.raises(ValueError, match="did not start"):
        grader.grade_batch(["\\boxed{x}"], ["y"])


def test_a_dead_worker_is_replaced():
    with Grader(1) as grader:
        assert grader.grade_batch(["\\boxed{\\sqrt{16}}"], ["4"])[0].correct
        os.killpg(grader.idle[0].process.pid, signal.SIGKILL)
        grader.idle[0].process.wait()
        dead, alive = grader.grade_batch(["\\boxed{\\sqrt{4}}", "\\boxed{\\sqrt{9}}"], ["2", "3"])
    assert dead == Grade(False, "crash", "\\sqrt{4}") and alive.correct
