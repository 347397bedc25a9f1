"""answers.py and grader.py: what the answer is, what equals what, and that no answer can stall or kill the batch."""
import os
import shutil
import signal
from fractions import Fraction
from pathlib import Path
from unittest.mock import patch

import pytest

from benchmarks.grader import ANSWERS, HOSTILE
from conftest import ROOT
from answers import Grade, as_fraction, as_interval, differ_in_value, grade, is_too_large, last_box, parse_math
from grader import Grader


@pytest.mark.parametrize(("text", "answer"), [
    ("so \\boxed{85}", "85"),
    ("\\boxed{41} wait, \\boxed{42}", "42"),
    ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
    ("\\fbox{3} ", "3"),
    ("\\boxed 42", "42"),
    ("\\boxed{1}</think> no box here", None),
    ("<think>\\boxed{1}</think> \\boxed{2}", "2"),
    ("\\boxed{2} and then \\boxed{cut off", "2"),
    ("nothing", None),
    ("", None),
])
def test_last_balanced_box_behind_the_reasoning(text, answer):
    assert last_box(text) == answer


@pytest.mark.parametrize(("text", "answer"), [
    ("$\\boxed{1}$ or $\\boxed{2}$", "1, 2"),
    ("\\boxed{x=1}, and \\boxed{y=2}.", "x=1, y=2"),
    ("$x = \\boxed{1}$ and $y = \\boxed{2}$", "1, 2"),
    ("\\boxed{7}, \\boxed{7}", "7"),
    ("\\boxed{1}. Then \\boxed{2}", "2"),
    ("\\boxed{1}\n\n\\boxed{2}", "2"),
    ("\\boxed{1}, \\boxed{2}. No: \\boxed{3}", "3"),
    ("\\boxed{\\boxed{42}}", "{42}"),
    ("\\boxed{-\\boxed{42}}", "-{42}"),
    ("\\boxed{41} (or \\boxed{42})", "41, 42"),
    ("**\\boxed{41}** or **\\boxed{42}**", "41, 42"),
    ("\\boxed{41} or, perhaps, \\boxed{42}", "41, 42"),
    ("$m+n=\\boxed{41}$ or $m+n=\\boxed{42}$", "41, 42"),
    ("\\boxed{41}. So the answer is \\boxed{42}", "42"),
    ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
    ("\\boxed{\\left\\{ 1 \\right.}", "\\left\\{ 1 \\right."),
    ("\\boxed{a} <think> \\boxed{b} and so", "a"),
    ("<think> maybe \\boxed{42}", None),
    ("\\boxed{42", None),
])
def test_boxes_of_one_statement_are_one_answer(text, answer):
    """Joined by a comma, "and" or "or" they are a list; a corrected box replaces the one before; reasoning that was cut off has no answer."""
    assert last_box(text) == answer


def test_answers_of_the_table(tmp_path):
    """Every kind of answer, right and wrong, through one worker (its verdicts on nonsense do not depend on the run: the hash seed is fixed)."""
    rows = [line.split("\t") for line in ANSWERS.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    with Grader(1) as grader:
        grades = grader.grade_batch([f"so \\boxed{{{answer}}}" for answer, _, _ in rows], [gold for _, gold, _ in rows])
    assert len(rows) > 150
    assert not [(answer, gold, item.reason) for (answer, gold, right), item in zip(rows, grades) if item.correct != bool(int(right))]


@pytest.mark.parametrize(("text", "value"), [
    ("0.1\\overline{6}", Fraction(1, 6)), ("0.(142857)", Fraction(1, 7)), ("1.5e-3", Fraction(3, 2000)), ("4.5\\times 10^{33}", Fraction(45 * 10**32)), ("-2\\frac{1}{2}", Fraction(-5, 2)),
    ("2 1/2", Fraction(5, 2)), ("1,234,567", Fraction(1234567)), ("--5", Fraction(5)), ("\\frac{-1}{2}", Fraction(-1, 2)), (".5", Fraction(1, 2)),
    ("2\\frac{3}{2}", None), ("1/0", None), (".", None), ("1 2", None), ("12,34", None), ("1e9999", None), ("x", None), ("", None), ("9" * 300, None),
])
def test_exact_numbers(text, value):
    assert as_fraction(text) == value


@pytest.mark.parametrize(("text", "interval"), [
    ("x<2 or x>3", "(-\\infty,2)\\cup(3,\\infty)"), ("1\\le x<3", "[1,3)"), ("3>x\\ge 1", "[1,3)"), ("5<x", "(5,\\infty)"), ("x\\geq\\pi", "[\\pi,\\infty)"),
    ("x<y", None), ("1<2", None), ("1<x>0", None), ("x=2", None), ("(1,2)", None),
])
def test_inequalities_as_intervals(text, interval):
    assert as_interval(text) == interval


def test_values_that_differ_need_no_algebra():
    """A shortcut past simplification: never for equal expressions in another form, always for numbers apart."""
    def differ(a, b):
        return differ_in_value(parse_math(a)[0], parse_math(b)[0])
    assert differ("\\sqrt{2}", "1.5") and differ("x+1", "x+2") and differ("x", "y")
    assert not differ("(x+1)^2", "x^2+2x+1") and not differ("\\sqrt{8}", "2\\sqrt{2}") and not differ("2^{2017}", "2\\cdot 4^{1008}")
    assert not differ("(1,2)", "3"), "not for anything but expressions"


def test_a_text_without_a_box():
    """Wrong by default; by the published protocol math-verify looks for an answer itself, but not in an empty text."""
    assert grade("The answer is $\\frac{1}{2}$.", "0.5") == Grade(False, "no box", None)
    assert grade("The answer is $\\frac{1}{2}$.", "0.5", require_box=False).correct
    assert not grade("The answer is $\\frac{1}{3}$.", "0.5", require_box=False).correct
    assert grade("thoughts $1$</think> ", "1", require_box=False) == Grade(False, "no box", None)
    with Grader(1, require_box=False) as grader:
        assert [item.correct for item in grader.grade_batch(["It is $1/2$.", "\\boxed{2}"], ["0.5", "2"])] == [True, True]


@pytest.mark.parametrize(("answer", "gold", "large"), [
    ("9^{9^9}", "42", True), ("2^{2^{10}}", "2^{1024}", False), ("10^{100000}", "42", True), ("10^{100000}", "10^{99999}", False), ("1e99999", "42", True),
    ("(5!)!!", "42", True), ("5000!", "42", True), ("5000!", "5000!+1", False), ("10!!", "3840", False), ("\\binom{20}{10}", "1", False), ("\\binom{1000000}{5}", "1", True),
    ("(" * 30 + ")" * 30, "1", True), ("1" * 1001, "1", True), ("1" * 1001, "2" * 900, False), ("x+" * 1500, "x", True), ("x+" * 1500, "x+" * 1000, False), ("\\pm" * 30, "1", True),
])
def test_sizes_nobody_needs_are_refused_unless_the_gold_has_them(answer, gold, large):
    assert is_too_large(answer, gold) is large


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
    """A worker that falls silent for good, with a deadline far shorter than its life: waiting for its end instead would read as a crash."""
    (tmp_path / "silent.py").write_text("import time\nprint('ready', flush=True)\ntime.sleep(20)\n")
    monkeypatch.setattr("grader.__file__", str(tmp_path / "silent.py"))
    with Grader(1, timeout_s=0.1) as grader:
        assert grader.grade_batch(["\\boxed{x}"], ["y"]) == [Grade(False, "timeout", "x")]
        assert grader.idle[0].process is None, "its late verdict cannot be taken for that of the next answer"


def test_hostile_answers_are_wrong_and_the_next_ones_are_graded():
    """Bombs of every kind, more than a hundred: none is right, none raises, and right answers before, between and after them are right."""
    right = "\\boxed{\\frac{84}{2}+0}"
    texts = [right, *HOSTILE[:60], right, *HOSTILE[60:], "so \\boxed{42}", right.replace("84", "168").replace("{2}", "{4}")]
    with Grader(2) as grader:
        grades = grader.grade_batch(texts, ["42"] * len(texts))
    assert len(HOSTILE) > 100 and sum(item.reason == "too large" for item in grades) > 80, "most are refused before algebra sees them"
    assert [text for text, item in zip(texts, grades) if item.correct] == [texts[0], texts[61], *texts[-2:]]


@pytest.mark.parametrize(("line", "reason"), [("time.sleep(60)", "timeout"), ("os.kill(os.getpid(), 9)", "crash"), ("bytes(10**10)", "crash"), ("sys.exit(3)", "crash"), ("1 / 0", "unparsed")])
def test_a_process_that_stalls_or_dies_is_replaced(tmp_path, line, reason):
    """The worker runs the files with one line put in where the answer is x; the next answers are graded by the fork that follows."""
    shutil.copy(ROOT / "grader.py", tmp_path)
    source = (ROOT / "answers.py").read_text(encoding="utf-8")
    stalling = source.replace("    from math_verify import verify\n", f"    import os, sys, time\n    if answer == 'x':\n        {line}\n    from math_verify import verify\n", 1)
    assert stalling != source
    (tmp_path / "answers.py").write_text(stalling, encoding="utf-8")
    with patch("grader.__file__", str(tmp_path / "grader.py")), Grader(1, timeout_s=1.0) as grader:
        grades = grader.grade_batch(["\\boxed{x}", "\\boxed{\\sqrt{4}}", "\\boxed{x}", "\\boxed{\\sqrt{9}}"], ["y", "2", "z", "3"])
        first = grader.idle[0].process.pid
        assert grader.grade_batch(["\\boxed{x}"], ["w"])[0].reason == reason and grader.idle[0].process.pid == first, "without importing again"
    assert [item.reason for item in grades] == [reason, "equal", reason, "equal"] and grades[0].answer == "x"


def test_the_cache_forgets_the_oldest(monkeypatch):
    monkeypatch.setattr("grader.CACHED", 2)
    with Grader(1) as grader:
        answers = [f"\\boxed{{\\sqrt{{{n}}}}}" for n in (4, 9, 16)]
        assert all(item.correct for item in grader.grade_batch(answers, ["2", "3", "4"]))
        assert [question.gold for question in grader.cache] == ["3", "4"]


def test_a_process_killed_between_two_questions_costs_no_verdict():
    """As the out-of-memory killer does: neither its report nor a late reply may be taken for the reply to the next question."""
    answers = [f"\\boxed{{\\sqrt{{{n * n}}}}}" for n in range(2, 26)]
    with Grader(1) as grader:
        grader.grade_batch(["\\boxed{\\sqrt{16}}"], ["4"])
        for start in range(0, 24, 3):
            parent = grader.idle[0].process.pid
            children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
            os.kill(int(children[0]), signal.SIGKILL)
            golds = [str(n + 2 if n % 2 else n + 3) for n in range(start, start + 3)]
            grades = grader.grade_batch(answers[start : start + 3], golds)
            assert [item.correct for item in grades if item.reason != "crash"] == [n % 2 == 1 for n, item in zip(range(start, start + 3), grades) if item.reason != "crash"]
            assert sum(item.reason == "crash" for item in grades) <= 1


@pytest.mark.parametrize("reply", ["no json", "[1]", "\\udcff", "half a line without an end"])
def test_a_worker_that_talks_nonsense_is_replaced(tmp_path, monkeypatch, reply):
    (tmp_path / "nonsense.py").write_text(f"import sys\nprint('ready', flush=True)\nsys.stdin.readline()\nprint({reply!r}, end={'' if 'half' in reply else chr(10)!r}, flush=True)\n"
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
