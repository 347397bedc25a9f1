"""metrics.py: estimators against counting, and figures by hand from records as the trainer writes them."""
import importlib.machinery
import itertools
import json
import math
import subprocess
import sys
import types
from fractions import Fraction

import numpy as np
import pytest
import torch
from test_loop import run as train_here

import metrics
from metrics import (Trackers, before_and_after, check_trackers, effective_labels, group_figures, maj_at_k, noise_note,
                     pass_at_k, scalars, standard_error, step_line, vendi_score, weight_length)


def test_pass_at_k_equals_counting_subsets():
    """Brute force over all k-subsets of n samples."""
    for n in range(1, 8):
        for c in range(n + 1):
            for k in range(1, n + 1):
                subsets = list(itertools.combinations(range(n), k))
                assert pass_at_k(n, c, k) == pytest.approx(sum(min(s) < c for s in subsets) / len(subsets), abs=1e-12)
    assert pass_at_k(1000, 1, 1000) == 1.0 and pass_at_k(1000, 0, 5) == 0.0
    for n, c, k in ((4, 5, 1), (4, 2, 0), (4, 2, 5)):
        with pytest.raises(ValueError, match="pass@k"):
            pass_at_k(n, c, k)


def test_maj_at_k_equals_counting_subsets():
    """Brute force over all k-subsets in rationals: a tie of t answers is worth 1/t, who gave no answer has no vote, and
    k = 1 is accuracy."""
    for votes in ("aabbc", "aaabbb", "abcd---", "aaaaaab", "a-bb-cc", "bbcc", "---", "aabbcc-"):
        names = [None if vote == "-" else vote for vote in votes]
        for k in range(1, len(votes) + 1):
            total, subsets = Fraction(0), list(itertools.combinations(names, k))
            for subset in subsets:
                most = max(map(subset.count, set(subset) - {None}), default=0)
                winners = [vote for vote in set(subset) - {None} if subset.count(vote) == most]
                total += Fraction("a" in winners, len(winners) or 1)
            assert maj_at_k(names, "a", k) == pytest.approx(float(total / len(subsets)), abs=1e-12), (votes, k)
        assert maj_at_k(names, "a", 1) == pytest.approx(names.count("a") / len(names), abs=1e-12)
    assert maj_at_k(["a"] * 70 + ["b"] * 50, "a", 120) == 1.0
    for k in (0, 5):
        with pytest.raises(ValueError, match="maj@k"):
            maj_at_k(["a"] * 4, "a", k)


def test_vendi_score_by_hand():
    """Clones count once, unlike texts each; two pairs of clones are two, and cosine 1/2 has the eigenvalues 3/4 and
    1/4."""
    pairs = torch.eye(2).repeat_interleave(2, 0).repeat_interleave(2, 1)
    for similarity, expected in ((torch.ones(5, 5), 1), (torch.eye(5), 5), (pairs, 2), (
            torch.tensor([[1, 0.5], [0.5, 1]]), math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)))):
        assert vendi_score(similarity) == pytest.approx(expected, abs=1e-9)


def test_effective_labels_by_hand():
    assert effective_labels(["a"] * 5) == 1.0
    assert effective_labels(["a", "b", "c", "d"]) == pytest.approx(4)
    assert effective_labels(["a", "a",
                             "b"]) == pytest.approx(math.exp(-(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3))))
    with pytest.raises(ValueError):
        effective_labels([])


def test_standard_error_by_hand():
    assert standard_error([0.0, 1.0]) == pytest.approx(0.5)
    assert standard_error([0.3]) == 0.0


def completion(correct, advantage, label, finish="stop", length=4, weight=0.5, cut=False):
    return {"correct": correct, "reward": 2.0 * correct, "rewards": {"accuracy": float(correct), "format": 0.5},
            "smi": 1.0, "weight": weight, "cut": cut, "adjusted": 1.0 * correct,
            "advantage": advantage, "label": label, "finish": finish, "length": length,
            "reason": "equal" if correct else "no box"}


def test_group_figures_by_hand():
    """Groups of 4, 2 and 2: means count every completion once, modes count right answers of groups that have any,
    groups count once."""
    groups = [[completion(True, 1.0, "a", weight=1.0), completion(True, 0.0, "b"), completion(True, 0.0, "b"),
               completion(False, -1.0, "c", "length", 12, cut=True)],
              [completion(False, 0.25, "c", weight=0.2), completion(False, -0.25, "d")],
              [completion(True, 0.5, "a"), completion(False, -0.5, "c")]]
    figures = group_figures(
        [{"completions": group, "similarity": similarity} for group, similarity in zip(groups, (0.9, 0.6, 0.3))])
    assert figures["accuracy"] == 0.5 and figures["reward"] == 1.0 and figures["adjusted"] == 0.5
    assert figures["rewards"] == {"accuracy": 0.5, "format": 0.5}
    assert figures["length"] == 5 and figures["truncated"] == 1 / 8 and figures["reasons"] == {"equal": 4, "no box": 4}
    still = [completion(True, 0.0, "a")] * 4
    assert group_figures([{"completions": group, "similarity": None}
                          for group in (*groups, still)])["zero_advantage"] == 1 / 4
    assert figures["similarity"] == pytest.approx(0.6) and figures["density"] == 2 and figures["embed_cut"] == 1
    assert figures["weight_max"] == pytest.approx((1 + 0.5 + 0.5) / 3)
    assert figures["weight_min"] == pytest.approx((0.5 + 0.2 + 0.5) / 3)
    # the second group alone has equal raw rewards
    assert figures["equal_group_share"] == pytest.approx(0.5 / (2 + 0.5 + 1))
    two_to_one = math.exp(-(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3)))
    assert figures["modes"] == pytest.approx((two_to_one + 1) / 2)
    without = group_figures([{"completions": [completion(False, 0.0, "c")] * 2, "similarity": None}])
    assert without["modes"] is None and without["similarity"] is None and without["equal_group_share"] == 0


def test_rewards_that_do_not_apply_stay_out_of_their_mean():
    """None is no 0: a function that judges one of four has the mean of that one, and one that judges none has none."""
    group = [completion(True, 0.0, "a") | {"rewards": {"some": value, "never": None}}
             for value in (3.0, None, None, None)]
    assert group_figures([{"completions": group, "similarity": None}])["rewards"] == {"some": 3.0, "never": None}


LONG = {"step": 9999, "reward": -0.123, "accuracy": 0.5, "similarity": 0.5, "smi": 62.987, "modes": 12.345,
        "zero_advantage": 0.25,
        "kl": 12.34567, "entropy": 11.234, "grad_norm": 123.45, "length": 32768.0, "truncated": 0.125, "gap": 1e-3,
        "sample_s": 1234.5, "reward_s": 123.4, "update_s": 1234.5, "tokens_per_s": 123456.7}


def test_the_step_line_has_what_the_run_has_and_fits():
    """A run with everything and wide numbers; one without DRA, reference and labels.

    A step of a few tokens is no 0.0k.
    """
    assert step_line(LONG, 9999) == (
        "step 9999/9999 | reward -0.123 acc 0.500 smi 63.0 modes 12.3 zero-adv 0.25 | kl 12.346 ent 11.2 gnorm 123 | "
        "len 32768 trunc 0.12 | 1234+123+1234 s | 123k tok/s")
    for wide in (LONG, LONG | {"reward": -123.456, "kl": 1234.5, "grad_norm": 123456.7}):
        assert len(step_line(wide, 999999)) <= 160
    plain = LONG | {"similarity": None, "smi": 0.0, "modes": None, "kl": None, "sample_s": 0.04, "tokens_per_s": 3.21}
    assert step_line(plain, 9999) == (
        "step 9999/9999 | reward -0.123 acc 0.500 zero-adv 0.25 | ent 11.2 gnorm 123 | len 32768 trunc 0.12 | "
        "0.0+123+1234 s | 3.2 tok/s")


def test_before_and_after_are_the_first_and_the_last(tmp_path):
    records = [{"kind": "eval", "benchmark": "x", "step": step, "accuracy": step / 100, "accuracy_se": 0.01,
                "pass_at_k": {} if step else {"8": 0.5}, "truncated": 0.25, "n": 9,
                "effective_strategies": None if step else 2.5, "effective_strategies_problems": 7,
                **({} if step else {"distinct_strategies": 3.0})}
               for step in (0, 50, 100)]
    (tmp_path / "metrics.jsonl").write_text(
        "".join(json.dumps(record) + "\n" for record in [{"kind": "run", "config": {}, "argv": []}, *records]))
    rows = [line.split() for line in before_and_after(tmp_path).splitlines() if line.startswith("x ")]
    assert rows == [["x", "0", "0.000", "±", "0.010", "0.50", "0.250", "2.50", "(7", "of", "9)", "3.00"],
                    ["x", "100", "1.000", "±", "0.010", "-", "0.250", "-", "-"]]


def test_weight_and_length_of_rewarded_completions_go_together():
    """numpy's correlation of both around their group's means; what has no reward, and groups apart, do not count."""
    rows = [[(1.0, 0.5, 3), (1.0, 0.3, 2), (0.0, 0.9, 1), (2.0, 0.2, 2)], [(1.0, 0.9, 30), (1.0, 0.8, 31)],
            [(0.0, 0.1, 7)]]
    groups = [[dict(zip(("reward", "weight", "length"), row)) for row in group] for group in rows]
    rewarded = [np.array([row[1:] for row in group if row[0] > 0]) for group in rows[:2]]
    centred = np.concatenate([values - values.mean(0) for values in rewarded])
    assert weight_length(groups) == pytest.approx(np.corrcoef(centred.T)[0, 1])
    assert weight_length([[completion | {"weight": 1.0} for completion in group] for group in groups]) is None
    assert weight_length([[completion | {"length": 5} for completion in group] for group in groups]) is None
    assert weight_length(groups[2:]) is None


@pytest.mark.parametrize(("paid", "length", "truncated", "noted"), [
    (0.5, 10.0, 0.16, True), (0.5, 15.0, 0.1, True), (0.3, 10.0, 0.16, True), (0.29, 20.0, 0.5, False),
    (0.5, 14.9, 0.14, False), (None, 20.0, 0.5, False)])
def test_noise_is_noted_where_dra_pays_for_length(paid, length, truncated, noted):
    """First quarter against the last; what is between does not count, nor a run of three steps or an older record."""
    begun, between = {"length": 10.0, "truncated": 0.1}, {"weight_length": 0.9, "length": 99.0, "truncated": 0.9}
    now = {"weight_length": paid, "length": length, "truncated": truncated}
    assert bool(note := noise_note([begun, between, between, now])) == noted
    assert noise_note([begun, now, now]) == ""
    if noted:
        assert f"with {paid:.2f}" in note and f"10.0 to {length:.1f} tokens, 10% to {truncated:.0%}" in note


def test_scalars_by_hand():
    assert scalars({"kind": "train", "step": 3, "reward": 0.5, "modes": None,
                    "rewards": {"format": 1.0}}) == {"train/reward": 0.5, "train/rewards/format": 1.0}
    assert scalars({"kind": "eval", "step": 3, "benchmark": "b", "accuracy": 0.5,
                    "pass_at_k": {"2": 1.0}}) == {"eval/b/accuracy": 0.5, "eval/b/pass_at_k/2": 1.0}


def stub(monkeypatch, name: str) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    monkeypatch.setitem(sys.modules, name, module)
    return module


def test_trackers_are_checked_before_anything_is_loaded(monkeypatch):
    with pytest.raises(ValueError, match="'x' is not known"):
        check_trackers(["x"])
    monkeypatch.setattr(metrics, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="'wandb' is not installed; pip install wandb"):
        check_trackers(["wandb"])
    check_trackers([])


def test_a_tracker_gets_every_record_of_a_run(monkeypatch, tmp_path):
    """Weights & Biases, as far as we call it: one step number per record, the numbers of metrics.jsonl, and an end."""
    for name in ("PROJECT", "RUN_GROUP", "NAME", "DIR"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    wandb, seen = stub(monkeypatch, "wandb"), []
    wandb.init = lambda **settings: seen.append(settings) or types.SimpleNamespace(
        log=lambda values, step: seen.append((step, values)), finish=lambda: seen.append("end"))
    config = train_here(tmp_path / "run", ["1+2", "3+4", "5+6", "7+8"], "run.steps=2", 'run.trackers=["wandb"]')
    written = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert seen[0]["group"] == "run" and seen[0]["config"]["run"]["dir"] == config.run.dir and seen[-1] == "end"
    assert [step for step, _ in seen[1:-1]] == [record["step"] for record in written if record["kind"] != "run"]
    assert [values["train/reward"] for _, values in seen[1:-1] if "train/reward" in values] == [
        record["reward"] for record in written if record["kind"] == "train"]


def test_the_environment_of_wandb_wins(monkeypatch, tmp_path):
    """An argument of init would go before its variable: ours are handed over only where the variable says nothing."""
    seen = {}
    stub(monkeypatch, "wandb").init = lambda **settings: seen.update(settings)
    names = {"WANDB_PROJECT": "project", "WANDB_RUN_GROUP": "group", "WANDB_NAME": "name", "WANDB_DIR": "dir"}
    for variable in names:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("WANDB_NAME", "")                # set to nothing
    Trackers(["wandb"], tmp_path / "r", {}, 5)
    ours = {"project": "dra-grpo", "group": "r", "name": "r from 5", "dir": str(tmp_path / "r"), "config": {}}
    assert seen == ours
    for variable, name in names.items():
        seen.clear()
        with monkeypatch.context() as patch:
            patch.setenv(variable, "mine")
            Trackers(["wandb"], tmp_path / "r", {}, 5)
        assert seen == {key: value for key, value in ours.items() if key != name}


def test_a_function_of_the_users_gets_every_record(tmp_path):
    """Any other tracker: each record of metrics.jsonl in order, the run's first; what it raises names it."""
    (tmp_path / "my.py").write_text("import json\ndef keep(record):\n    with open(__file__ + '.out', 'a') as file:\n"
                                    "        file.write(json.dumps(record) + '\\n')\ndef fail(record):\n    1 / 0\n")
    check_trackers([f"{tmp_path}/my.py:keep"])
    records = [{"kind": "run", "step": 0, "config": {}}, {"kind": "train", "step": 1, "reward": 0.5}]
    trackers = Trackers([f"{tmp_path}/my.py:keep"], tmp_path, {}, 0)
    trackers.log(records[:1]), trackers.log(records[1:]), trackers.close()
    assert list(map(json.loads, (tmp_path / "my.py.out").read_text().splitlines())) == records
    with pytest.raises(ValueError, match="run.trackers: .*my.py:fail raised ZeroDivisionError"):
        Trackers([f"{tmp_path}/my.py:fail"], tmp_path, {}, 0).log(records)
    with pytest.raises(ValueError, match="run.trackers.*no function 'none'"):
        check_trackers([f"{tmp_path}/my.py:none"])


def test_tensorboard_gets_numbers_in_the_run_folder(monkeypatch, tmp_path):
    module, seen = stub(monkeypatch, "torch.utils.tensorboard"), []
    module.SummaryWriter = lambda folder, purge_step: seen.append((folder, purge_step)) or types.SimpleNamespace(
        add_scalar=lambda *values: seen.append(values), close=lambda: seen.append("end"))
    trackers = Trackers(["tensorboard"], tmp_path, {}, 5)
    trackers.log([{"kind": "run", "step": 5, "world": 1}, {"kind": "train", "step": 6, "reward": 0.5}])
    trackers.close()
    assert seen == [(str(tmp_path / "tensorboard"), 6), ("train/reward", 0.5, 6), "end"]


def test_a_wandb_that_does_not_start_is_a_line(monkeypatch, tmp_path):
    def init(**_):
        raise RuntimeError("not logged in\nand more")

    stub(monkeypatch, "wandb").init = init
    with pytest.raises(ValueError, match="wandb does not start: not logged in; WANDB_MODE"):
        Trackers(["wandb"], tmp_path, {}, 0)


def test_a_trainer_does_not_wait_for_plots():
    """What only reports need is not imported by the trainer, and no tracker is."""
    code = ("import dra_grpo, sys; "
            "assert not {'scipy', 'matplotlib', 'wandb', 'tensorboard', 'page', 'kernel'} & set(sys.modules)")
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
