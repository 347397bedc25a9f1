"""tiny_chain/: the labels, what is right, and that the committed files are what the script makes."""
import json
import random
import re
from collections import Counter

import pytest
from conftest import ROOT

from model import Transformer
from tiny_chain.task import STRATEGIES, correct, problems, solution, strategy

ROW = {"problem": "4+9+6+1", "answer": "20"}


def test_solutions_show_their_strategy_and_slips_are_wrong():
    """For all problems and strategies; a slip changes sums, not the form, and one slip makes the answer wrong."""
    rng, rows, slipped = random.Random(0), problems(), 0
    for row in rows[::17]:
        numbers = list(map(int, row["problem"].split("+")))
        for name in STRATEGIES:
            text = solution(name, numbers, rng)
            assert strategy(text, row) == name and correct([text], [row]) == [True]
            wrong = solution(name, numbers, rng, slip=0.5)
            steps = [tuple(map(int, step)) for step in re.findall(r"(\d+)(?:\+| and )(\d+)(?:=| make )(\d+)", wrong)]
            total = sum(c - a - b for a, b, c in steps)
            assert strategy(wrong, row) == name and correct([wrong], [row]) == [total == 0]
            slipped += total != 0
    assert slipped > 100


@pytest.mark.parametrize(("text", "label", "right"), [
    ("9+6=15, then 15 and 1 make 16, 16+4=20, so \\boxed{20}", "second", True),
    ("9+6=15, then 15 and 1 make 17, 17+4=21, so \\boxed{21}", "second", False),
    ("4+6=10, 10+9=19, 19+1=20, so \\boxed{20}", "other order", False),             # right, but not once round
    ("4+9=13, 13+6=19, so \\boxed{20}", None, False), ("4+9=13, 13+6=19, 19+6=25, so \\boxed{25}", None, False),
    ("4+9=13, 13+6=19, 19+1=20, so 20", None, False), ("\\boxed{20}", None, False), ("", None, False),
    ("4+9=13, 13+6=19, 19+1=20, so \\boxed{20} \\boxed{20}", None, False),
])
def test_labels(text, label, right):
    assert strategy(text, ROW) == label and correct([text], [ROW]) == [right]


def test_no_problem_has_a_sum_of_its_own():
    """Each sum has several sets of digits, and all orders of each are there."""
    sets = Counter((sum(digits), tuple(sorted(digits))) for digits in
                   (tuple(map(int, row["problem"].split("+"))) for row in problems()))
    assert set(sets.values()) == {24} and min(Counter(total for total, _ in sets).values()) >= 2
    assert {total for total, _ in sets} == set(range(12, 29))


def test_the_committed_problems_are_those_of_the_task():
    """The first 200 are the test."""
    rows = [json.loads(line) for name in ("test", "train") for line in open(ROOT / f"tiny_chain/{name}.jsonl")]
    assert rows == problems() and len(rows) == 2928
    assert sum(1 for _ in open(ROOT / "tiny_chain/test.jsonl")) == 200


def test_the_committed_policy_is_small_and_loads():
    size = sum(path.stat().st_size for path in (ROOT / "tiny_chain").rglob("*") if path.is_file())
    assert size < 4 * 2**20 and Transformer.from_pretrained(ROOT / "tiny_chain/policy").g.layers == 4
