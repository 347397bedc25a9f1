"""report.py: figures by hand from records as the trainer writes them."""
import json
import math

import pytest

from report import before_and_after, group_figures


def completion(correct, advantage, label, finish="stop", length=4, weight=0.5, cut=False):
    return {"correct": correct, "reward": 2.0 * correct, "rewards": {"accuracy": float(correct), "format": 0.5}, "smi": 1.0, "weight": weight, "cut": cut, "adjusted": 1.0 * correct,
            "advantage": advantage, "label": label, "finish": finish, "length": length, "reason": "equal" if correct else "no box"}


def test_group_figures_by_hand():
    """Groups of 4, 2 and 2: means count every completion once, modes count right answers of groups that have any, groups count once."""
    groups = [[completion(True, 1.0, "a", weight=1.0), completion(True, 0.0, "b"), completion(True, 0.0, "b"), completion(False, -1.0, "c", "length", 12, cut=True)],
              [completion(False, 0.25, "c", weight=0.2), completion(False, -0.25, "d")],
              [completion(True, 0.5, "a"), completion(False, -0.5, "c")]]
    figures = group_figures([{"completions": group, "similarity": similarity} for group, similarity in zip(groups, (0.9, 0.6, 0.3))])
    assert figures["accuracy"] == 0.5 and figures["reward"] == 1.0 and figures["adjusted"] == 0.5 and figures["rewards"] == {"accuracy": 0.5, "format": 0.5}
    assert figures["length"] == 5 and figures["truncated"] == 1 / 8 and figures["reasons"] == {"equal": 4, "no box": 4}
    still = [completion(True, 0.0, "a")] * 4
    assert group_figures([{"completions": group, "similarity": None} for group in (*groups, still)])["zero_advantage"] == 1 / 4
    assert figures["similarity"] == pytest.approx(0.6) and figures["density"] == 2 and figures["embed_cut"] == 1
    assert figures["weight_max"] == pytest.approx((1 + 0.5 + 0.5) / 3) and figures["weight_min"] == pytest.approx((0.5 + 0.2 + 0.5) / 3)
    assert figures["equal_group_share"] == pytest.approx(0.5 / (2 + 0.5 + 1))       # the second group alone has equal raw rewards
    two_to_one = math.exp(-(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3)))
    assert figures["modes"] == pytest.approx((two_to_one + 1) / 2)
    without = group_figures([{"completions": [completion(False, 0.0, "c")] * 2, "similarity": None}])
    assert without["modes"] is None and without["similarity"] is None and without["equal_group_share"] == 0


def test_before_and_after_are_the_first_and_the_last(tmp_path):
    records = [{"kind": "eval", "benchmark": "x", "step": step, "accuracy": step / 100, "accuracy_se": 0.01, "effective_strategies": None if step else 2.5}
               for step in (0, 50, 100)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in [{"kind": "run"}, *records]))
    rows = [line.split() for line in before_and_after(tmp_path).splitlines() if line.startswith("x ")]
    assert rows == [["x", "0", "0.000", "±", "0.010", "2.50"], ["x", "100", "1.000", "±", "0.010", "-"]]
