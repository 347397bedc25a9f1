"""grader.py: what the answer is, what equals what, and that no answer can stall or kill the batch."""
import pytest

from grader import Grade, Grader, grade, last_box


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


@pytest.mark.parametrize(("answer", "gold", "correct"), [
    ("85", "85", True), ("85.", "85", True), ("085", "85", True), ("0.5", "1/2", True), ("-3", "3", False), ("84", "85", False),
    ("\\frac{1}{2}", "0.5", True), ("x+1", "1+x", True), ("x+1", "x+2", False), ("\uff18\uff15", "85", True), ("", "85", False),
    ("\\sqrt{8}", "2\\sqrt{2}", True), ("1/0", "1", False), ("(-\\infty,1)", "x<1", True), ("x+1", "\\ldots", False),
])
def test_grade_compares_exactly_then_symbolically(answer, gold, correct):
    assert grade(f"so \\boxed{{{answer}}}", gold).correct is correct


def test_batch_keeps_order_and_agrees_with_grade():
    texts = ["\\boxed{1}", "none", "\\boxed{\\frac{2}{4}}", "\\boxed{x}", "\\boxed{2}"]
    golds = ["1", "1", "1/2", "1", "1"]
    with Grader(2) as grader:
        grades = grader.grade_batch(texts, golds)
        assert [item.correct for item in grades] == [True, False, True, False, False]
        assert [item.reason for item in grades][:3] == ["equal", "no box", "equal"]
        assert grades == [grade(text, gold) for text, gold in zip(texts, golds)]
        assert grader.grade_batch(texts, golds) == grades, "the cache answers the same"


def test_a_silent_worker_is_given_up(tmp_path, monkeypatch):
    """A worker that falls silent for good, with a deadline far shorter than its life: waiting for its end instead would read as a crash."""
    (tmp_path / "silent.py").write_text("import time\nprint('ready', flush=True)\ntime.sleep(20)\n")
    monkeypatch.setattr("grader.__file__", str(tmp_path / "silent.py"))
    with Grader(1, timeout_s=0.1) as grader:
        assert grader.grade_batch(["\\boxed{x}"], ["y"]) == [Grade(False, "timeout", "x")]
        assert grader.idle[0].process is None, "its late verdict cannot be taken for that of the next answer"


def test_hostile_answers_cost_a_deadline_and_nothing_else():
    """A tower of powers stalls sympy: it is wrong with a reason, its worker is replaced, and the next answer is graded."""
    hostile = "\\boxed{(x+1)^{10^{10^{10}}}+9^{9^{9^{9}}}}"
    with Grader(1, timeout_s=1.0) as grader:
        first, second = grader.grade_batch([hostile, "\\boxed{\\frac{1}{2}}"], ["\\frac{1}{3}", "0.5"])
    assert not first.correct and first.reason in ("timeout", "crash", "unparsed", "different")
    assert second == Grade(True, "equal", "\\frac{1}{2}")


def test_a_dead_worker_is_replaced():
    with Grader(1) as grader:
        assert grader.grade_batch(["\\boxed{\\frac{1}{2}}"], ["0.5"])[0].correct
        grader.idle[0].process.kill()
        grader.idle[0].process.wait()
        dead, alive = grader.grade_batch(["\\boxed{\\frac{1}{4}}", "\\boxed{\\frac{3}{4}}"], ["0.25", "0.75"])
    assert dead == Grade(False, "crash", "\\frac{1}{4}") and alive.correct
