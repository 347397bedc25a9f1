"""report.py: figures by hand from records as the trainer writes them."""
import json
import math

import pytest

from report import before_and_after, group_figures


def completion(correct, advantage, label, finish="stop", length=4):
    return {"correct": correct, "reward": 2.0 * correct, "rewards": {"accuracy": float(correct), "format": 0.5}, "smi": 1.0, "weight": 0.5, "adjusted": 1.0 * correct,
            "advantage": advantage, "label": label, "finish": finish, "length": length, "reason": "equal" if correct else "no box"}


def test_group_figures_by_hand():
    """Groups of 4, 2 and 2: means count every completion once, modes count right answers of groups that have any, groups count once."""
    groups = [[completion(True, 1.0, "a"), completion(True, 0.0, "b"), completion(True, 0.0, "b"), completion(False, -1.0, "c", "length", 12)],
              [completion(False, 0.0, "c"), completion(False, 0.0, "d")],
              [completion(True, 0.5, "a"), completion(False, -0.5, "c")]]
    figures = group_figures([{"completions": group} for group in groups])
    assert figures["accuracy"] == 0.5 and figures["reward"] == 1.0 and figures["adjusted"] == 0.5 and figures["rewards"] == {"accuracy": 0.5, "format": 0.5}
    assert figures["length"] == 5 and figures["truncated"] == 1 / 8 and figures["reasons"] == {"equal": 4, "no box": 4}
    assert figures["zero_advantage"] == pytest.approx(1 / 3)
    two_to_one = math.exp(-(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3)))
    assert figures["modes"] == pytest.approx((two_to_one + 1) / 2)
    assert group_figures([{"completions": groups[1]}])["modes"] is None


def test_before_and_after_are_the_first_and_the_last(tmp_path):
    records = [{"kind": "eval", "benchmark": "x", "step": step, "accuracy": step / 100, "accuracy_se": 0.01, "effective_strategies": None if step else 2.5}
               for step in (0, 50, 100)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in [{"kind": "run"}, *records]))
    rows = [line.split() for line in before_and_after(tmp_path).splitlines() if line.startswith("x ")]
    assert rows == [["x", "0", "0.000", "±", "0.010", "2.50"], ["x", "100", "1.000", "±", "0.010", "-"]]
