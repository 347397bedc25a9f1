"""answers/: what the answer of a text is, and what equals what."""
import subprocess
import sys
from fractions import Fraction

import pytest
from mpmath import mp

from answers import Grade, compare_read, gold_of, grade, is_too_large, last_box, normalize
from answers.statements import read
from answers.values import Point, value_at
from benchmarks.grader import ANSWERS
from conftest import ROOT
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
    """Joined by a comma, "and" or "or" they are a list; a corrected box replaces the one before.

    Reasoning that was cut off has no answer.
    """
    assert last_box(text) == answer


def test_answers_of_the_table(tmp_path):
    """Every kind of answer, right and wrong, through one worker (its verdicts on nonsense do not depend on the run: the
    hash seed is fixed)."""
    rows = [line.split("\t") for line in ANSWERS.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    with Grader(1) as grader:
        grades = grader.grade_batch([f"so \\boxed{{{answer}}}" for answer, _, _ in rows], [gold for _, gold, _ in rows])
    assert len(rows) > 150
    assert not [(answer, gold, item.reason) for (answer, gold, right), item in zip(rows, grades)
                if item.correct != bool(int(right))]


def members(text):
    (statement,) = read(normalize(text))
    return statement.members


@pytest.mark.parametrize(("text", "value"), [
    ("0.1\\overline{6}", Fraction(1, 6)), ("0.(142857)", Fraction(1, 7)), ("1.5e-3", Fraction(3, 2000)),
    ("4.5\\times 10^{33}", 45 * 10**32),
    ("-2\\frac{1}{2}", Fraction(-5, 2)), ("2 1/2", Fraction(5, 2)), ("1{,}234{,}567", 1234567), ("--5", 5),
    ("\\frac{-1}{2}", Fraction(-1, 2)),
    (".5", Fraction(1, 2)), ("2\\frac{3}{2}", 3), ("\\frac12", Fraction(1, 2)),
    ("\\sqrt{\\frac{9}{4}}", Fraction(3, 2)), ("8^{-2/3}", Fraction(1, 4)),
    ("\\sqrt[3]{-8}", -2), ("10!!", 3840), ("\\binom{10}{3}", 120), ("\\lfloor -2.5\\rfloor", -3),
    ("1/2/2", Fraction(1, 4)), ("2^{3^2}", 512),
    ("36_7", 27), ("3F_{16}", 63), ("17\\bmod 5", 2), ("\\sum_{k=1}^{4}k^2", 30), ("\\gcd(12,18)", 6), ("|3-5|", 2),
    ("2^{-1200}", Fraction(1, 2**1200)),
])
def test_rational_numbers_are_read_exactly(text, value):
    (tree,) = members(text)
    assert value_at(tree, Point(0)) == value and isinstance(value_at(tree, Point(0)), Fraction)


@pytest.mark.parametrize(("text", "value"), [
    ("\\sqrt{2}", "sqrt(2)"), ("\\sin 2\\pi/3", "sin(2*pi)/3"), ("\\sin\\frac{\\pi}{6}", "sin(pi/6)"),
    ("\\log_2 10", "log(10)/log(2)"), ("e^{-3}", "exp(-3)"),
    ("\\sin 30^\\circ", "sin(pi/6)"), ("\\cos^2 1", "cos(1)**2"), ("\\sin^{-1}(1/3)", "asin(mpf(1)/3)"),
    ("5pi/6", "5*pi/6"), ("(1+i)^2", "mpc(0,2)"),
    ("\\ln 2\\cdot 3", "log(2)*3"), ("2^{1/3}", "cbrt(2)"), ("(-2)^{1/3}", "-cbrt(2)"), ("\\tan(1)", "tan(1)"),
    ("(1/2)!", "gamma(1.5)"),
])
def test_other_numbers_are_those_of_mpmath(text, value):
    """Against the same formula written in Python, at 30 digits."""
    with mp.workdps(30):
        (tree,) = members(text)
        expected = eval(value, vars(mp.__class__) | {name: getattr(mp, name) for name in dir(mp)})
        assert abs(value_at(tree, Point(0)) - expected) < mp.mpf(10) ** -25


@pytest.mark.parametrize("text", ["x^{2}'", "42_{n}", "\\not= 42", "42 43", "\\frac{1}", "(1,2", "1+", "\\ge 42",
                                  "[1,2", "\\foo{3}", "42..43", "\\sqrt",
                                  "x_", "42\\text{ is wrong}", "\\lnot 42", "|x", "2\\cdot", "42?",
                                  "\\text{at least }42", "42\\notin A", "{3", "\\int x", "\\ln(2,3)"])
def test_what_is_not_read_whole_is_not_read(text):
    """A parser that stops early or drops a token would take these for 42, x^2 or another answer."""
    assert read(normalize(text)) == ()


@pytest.mark.parametrize(("text", "interval"), [
    ("1\\le x<3", "[1,3)"), ("3>x\\ge 1", "[1,3)"), ("5<x", "(5,\\infty)"), ("x\\geq\\pi", "[\\pi,\\infty)"),
    ("|x|<2", "(-2,2)"),
    ("x<2 or x>3", "(-\\infty,2)\\cup(3,\\infty)"), ("|x|\\ge 2", "(-\\infty,-2]\\cup[2,\\infty)"),
    ("x\\ne 2", "(-\\infty,2)\\cup(2,\\infty)"),
])
def test_inequalities_are_intervals(text, interval):
    text, interval = normalize(text), normalize(interval)
    assert compare_read(text, interval) == compare_read(interval, text) == "equal"


@pytest.mark.parametrize(("a", "b"), [
    ("e^{10^{-40}}", "1"), ("\\cos(10^{-10})", "1"), ("10^{40}+\\sqrt2", "10^{40}+\\sqrt2+10^{-30}"),
    ("e^{-1000}", "0"), ("\\sqrt{10^{60}+1}", "10^{30}"),
    ("e^{10^{-400}}", "1"), ("\\sqrt{x^2}", "x"), ("\\ln x^2", "2\\ln x"), ("\\lfloor x\\rfloor", "x"),
    ("\\lceil n/2\\rceil", "\\lfloor n/2\\rfloor"),
    ("x", "y"), ("x_1", "x_2"), ("\\phi", "\\Phi"), ("I", "i"), ("E", "e"), ("\\gamma", "0.5772156649015329"),
    ("C", "c"), ("\\sqrt{x^4+10^{-30}}", "x^2"),
])
def test_values_that_nearly_agree_differ(a, b):
    assert compare_read(normalize(a), normalize(b)) == compare_read(normalize(b), normalize(a)) == "different"


@pytest.mark.parametrize(("a", "b"), [
    ("\\sin\\pi", "0"), ("\\sqrt{2}\\sqrt{3}", "\\sqrt{6}"), ("\\sqrt{3+2\\sqrt2}", "1+\\sqrt2"),
    ("10^{40}+\\sqrt2-10^{40}", "\\sqrt2"), ("\\sqrt{x^2}", "|x|"),
    ("\\sin^2 x+\\cos^2 x", "1"), ("\\frac{x^2-1}{x-1}", "x+1"), ("e^{i\\pi}", "-1"), ("\\log_2 8", "3"),
    ("\\lfloor\\log_2 8\\rfloor", "3"), ("x^{2/3}", "\\sqrt[3]{x^2}"),
    ("\\sum_{k=1}^n k", "\\frac{n(n+1)}{2}"), ("\\binom{n}{2}", "\\frac{n(n-1)}{2}"),
    ("\\tan\\theta", "\\frac{\\sin\\theta}{\\cos\\theta}"),
    ("\\sum_{k=0}^{500}\\binom{500}{k}", "2^{500}"), ("\\frac{(n+1)!}{n!}", "n+1"),
    ("\\int_0^1 f(x)\\,dx", "\\int_0^1 f(t)\\,dt"),
])
def test_equal_formulas_of_any_form_are_equal(a, b):
    assert compare_read(normalize(a), normalize(b)) == compare_read(normalize(b), normalize(a)) == "equal"


def test_a_text_without_a_box():
    """Wrong by default; by the published protocol math-verify looks for an answer itself, but not in an empty text."""
    assert grade("The answer is $\\frac{1}{2}$.", "0.5") == Grade(False, "no box", None)
    assert grade("The answer is $\\frac{1}{2}$.", "0.5", require_box=False).correct
    assert not grade("The answer is $\\frac{1}{3}$.", "0.5", require_box=False).correct
    assert grade("thoughts $1$</think> ", "1", require_box=False) == Grade(False, "no box", None)
    with Grader(1, require_box=False) as grader:
        assert [item.correct for item in grader.grade_batch(["It is $1/2$.", "\\boxed{2}"],
                                                            ["0.5", "2"])] == [True, True]


@pytest.mark.parametrize(("answer", "gold", "large"), [
    ("(" * 30 + ")" * 30, "1", True), ("1" * 1001, "1", True), ("1" * 1001, "2" * 900, False), ("x+" * 1500, "x", True),
    ("x+" * 1500, "x+" * 1000, False),
])
def test_sizes_nobody_needs_are_refused_unless_the_gold_has_them(answer, gold, large):
    assert is_too_large(answer, gold) is large


@pytest.mark.parametrize("bomb", ["9^{9^9}", "10^{100000}", "1e99999", "((5!)!)!", "5000!", "\\binom{1000000}{500000}",
                                  "\\sum_{k=1}^{10000000}k", "2^{2^{2^{2^{2^{2}}}}}",
                                  "\\prod_{n=1}^{2000}n", "((2^{99})^{99})^{99}", "10^{10^{10^{10}}}", "(10^6)!",
                                  "\\sqrt{2}^{10^{30}}"])
def test_what_is_too_large_to_work_out_is_equal_only_as_text(bomb):
    assert grade(f"\\boxed{{{bomb}}}", "42").reason in ("too large", "unparsed", "different")
    assert not grade(f"\\boxed{{{bomb}}}", "42").correct
    assert grade(f"\\boxed{{{bomb}}}", bomb).correct and not grade(f"\\boxed{{{bomb}}}", bomb + "+1").correct


def test_a_verdict_depends_on_the_pair_alone():
    """In other processes with other hash seeds, and after other questions."""
    pairs = [("\\frac{x^2-1}{x-1}", "x+1"), ("\\lceil n/2\\rceil", "\\lfloor n/2\\rfloor"),
             ("c_1e^x+c_2e^{-x}", "C_1e^x+C_2e^{-x}"), ("1,2,3", "3,2,1")]
    code = f"import answers\nprint([answers.compare_read(*map(answers.normalize, pair)) for pair in {pairs}])"
    runs = {subprocess.run([sys.executable, "-c", code], cwd=ROOT, env={"PYTHONHASHSEED": seed}, capture_output=True,
                           text=True, check=True).stdout for seed in "123"}
    assert runs == {"['equal', 'different', 'equal', 'equal']\n"}


@pytest.mark.parametrize(("value", "gold"), [
    ("She picks 82 and then 57 more #### 139", "139"), ("He saves $1,200.\n#### $1,200.", "1200"),
    ("So it is.\n#### 139\nThat is all.", "139"),
    ("<answer>139</answer>", "139"), ("<think>2</think> <answer>\n139 </answer>", "139"), ("so $x=\\boxed{3}$.", "3"),
    ("$x=3$", "$x=3$"), ("#### 72", "72"),
])
def test_the_gold_is_where_data_sets_put_it(value, gold):
    assert gold_of(value) == gold


@pytest.mark.parametrize("value", ["?", "...", "$ $", "\\frac{1}{2", "#### ", "}{",
                                   "no number #### in here at all, sorry to say", "<answer></answer>",
                                   "We add the two numbers and find that the sum of all of them together is equal to "
                                   "the number seventeen."])
def test_a_gold_that_nobody_can_equal_is_refused(value):
    with pytest.raises(ValueError, match="no boxed answer can equal"):
        gold_of(value)
