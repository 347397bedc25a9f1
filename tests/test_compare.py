"""report/ compare, regrade and read: against brute force over all resamples, scipy, and hand values."""
import itertools
import json
import math
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from eval import summarize, with_average
from files import write_jsonl
from metrics import maj_at_k, pass_at_k
from ranks import run_main
from report.__main__ import main
from report.compare import (compare, conclusion, expanded_tail, expected_maximum, gain_of_choosing, measures,
                            paired_bootstrap, sign_flip_p)
from report.read import read_any, read_evaluation, read_groups, read_run
from report.regrade import regrade


def evaluation(folder: Path, right: list[list[int]], model: str = "m", gold: str = "4", labels: str = "",
               benchmark: str = "b") -> Path:
    """A folder as eval.py writes it; right[problem][sample]."""
    samples = [{"problem": p, "id": f"p{p}", "sample": s, "seed": 0, "text": f"so \\boxed{{{gold if value else 0}}}",
                "gold": gold, "answer": gold if value else "0",
                "correct": bool(value), "reason": "equal" if value else "different", "length": 3, "finish": "stop",
                **({"label": labels[s % len(labels)]} if labels else {}), "vote": gold if value else "0"}
               for p, row in enumerate(right) for s, value in enumerate(row)]
    folder.mkdir(parents=True, exist_ok=True)
    write_jsonl(folder / f"{benchmark}.samples.jsonl", samples[::-1])        # in any order
    file = folder / "results.jsonl"
    old = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    record = {"model": model, **summarize(benchmark, samples), "settings": {"temperature": 0.6}}
    write_jsonl(folder / "results.jsonl",
                with_average([*(record for record in old if "benchmarks" not in record), record]))
    return folder


def test_bootstrap_is_that_of_all_resamples():
    """The expanded percentiles of all 5^5 means of resampled differences; 10,000 random ones hit the neighbouring value
    at times."""
    differences = [0.0, 1.0, -2.0, 5.0, 11.0]
    exact = np.quantile([np.mean(draw) for draw in itertools.product(differences, repeat=5)],
                        (expanded_tail(5), 1 - expanded_tail(5)))
    centre, low, high = paired_bootstrap([differences])
    assert centre == pytest.approx(3) and low == pytest.approx(exact[0], abs=0.25)
    assert high == pytest.approx(exact[1], abs=0.25)
    assert paired_bootstrap([differences]) == (centre, low, high)


def test_bootstrap_of_an_average_draws_problems_within_each_benchmark():
    """All combinations of resamples of two benchmarks of 5 and 6 problems.

    Each counts half, whatever its size, and the smaller one decides how far tails reach.
    """
    a, b = [0.0, 4.0, 8.0, 20.0, 9.0], [-6.0, 0.0, 3.0, 1.0, 1.0, 2.0]
    draws_a, draws_b = (np.unique([np.mean(draw) for draw in itertools.product(values, repeat=len(values))],
                                  return_counts=True) for values in (a, b))
    means, counts = np.add.outer(draws_a[0], draws_b[0]).ravel() / 2, np.multiply.outer(draws_a[1], draws_b[1]).ravel()
    order = np.argsort(means)
    exact = means[order][np.searchsorted(np.cumsum(counts[order]) / counts.sum(),
                                         (expanded_tail(5), 1 - expanded_tail(5)))]
    centre, low, high = paired_bootstrap([a, b])
    assert centre == pytest.approx((8.2 + 1 / 6) / 2) and low == pytest.approx(exact[0], abs=0.3)
    assert high == pytest.approx(exact[1], abs=0.3)


def test_intervals_hold_the_truth_at_few_problems():
    """Normal differences with mean 0: 95 % of the intervals hold it at 6 problems as at 60, where plain percentiles
    would have 88 % and 94 %; and 2.5 % is the limit."""
    rng, holds = np.random.default_rng(3), []
    for n in (6, 60):
        intervals = [paired_bootstrap([rng.normal(size=n)]) for _ in range(400)]
        holds.append(np.mean([low <= 0 <= high for _, low, high in intervals]))
    assert holds == pytest.approx([0.95, 0.95], abs=0.025) and expanded_tail(10**6) == pytest.approx(0.025, abs=1e-6)


def test_pairing_takes_out_how_hard_problems_are():
    """One model is 3 points ahead on each of some very unequal problems: unpaired, that would drown."""
    assert paired_bootstrap([[3.0] * 30]) == (3, 3, 3)
    assert paired_bootstrap([[3.0]])[1:] == (-np.inf, np.inf)


def test_sign_flips_are_counted():
    """All 2^n signs for few problems: 2 to 0 has p = 1/2, 6 to 0 has 2/64.

    Problems without a difference change nothing; benchmarks count alike.
    """
    assert sign_flip_p([[100.0] * 2]) == 0.5 and sign_flip_p([[5.0] * 6 + [0.0] * 3]) == pytest.approx(2 / 64)
    assert sign_flip_p([[0.0] * 4]) == sign_flip_p([[3.0]]) == 1
    a, b = [1.0, 2.0], [-9.0, 3.0, 1.0]
    means = [abs(np.mean([x * sx for x, sx in zip(a, signs)]) + np.mean([x * sx for x, sx in zip(b, signs[2:])]))
             for signs in itertools.product((-1, 1), repeat=5)]
    assert sign_flip_p([a, b]) == pytest.approx(np.mean(np.array(means) >= abs(np.mean(a) + np.mean(b)) - 1e-9))


def test_conclusions_say_no_more_than_the_interval_and_the_signs():
    assert conclusion(1.9, -1.2, 5.0, 0.3, "30") == "A - B = +1.9 ± 3.1 points: not distinguishable at n = 30"
    assert conclusion(4.0, 1.0, 6.0, 0.01, "30") == "A - B = +4.0 ± 3.0 points: A is ahead at n = 30"
    said = conclusion(-0.5, -0.8, -0.1, 0.01, "9", "strategies")
    assert said == "A - B = -0.5 ± 0.4 strategies: B is ahead at n = 9"
    assert "not distinguishable" in conclusion(0.0, 0.0, 0.0, 1.0, "5")
    assert "one problem" in conclusion(1.0, -np.inf, np.inf, 1.0, "1")
    assert "not distinguishable" in conclusion(100.0, 100.0, 100.0, 0.5, "2")


def test_equal_models_with_unequal_samples_are_not_told_apart():
    """The same model with 8 samples a problem and with 16: pass@8 of 8 is 0 or 1 and hides rare failures, so both get
    their first 8."""
    rng = np.random.default_rng(0)
    ahead = 0
    for _ in range(20):
        p = rng.beta(6, 3, 40)
        a, b = ({problem: [{"correct": bool(rng.random() < p[problem])} for _ in range(n)] for problem in range(40)}
                for n in (8, 16))
        differences = [[x - y for x, y in measures(a, b)["pass@8"]]]
        ahead += "ahead" in conclusion(*paired_bootstrap(differences), sign_flip_p(differences), "40")
    assert ahead <= 3                                   # 1 expected, more than 3 in 2 %; with all 16 samples it is 16


def test_measures_by_hand():
    """Different numbers of samples on both sides: pass@k for the largest power of two that both have."""
    def samples(right: int, n: int, labels: str) -> list[dict]:
        return [{"correct": i < right, "label": labels[i % len(labels)]} for i in range(n)]

    found = measures({0: samples(16, 20, "ab"), 1: samples(20, 20, "a")},
                     {0: samples(30, 40, "abcd"), 1: samples(3, 40, "a")})
    assert found["accuracy"] == [(80, 75), (100, 7.5)]
    # of the first 20 of 40
    assert found["pass@16"] == [(100 * pass_at_k(20, 16, 16), 100), (100, 100 * pass_at_k(20, 3, 16))]
    assert found["strategies"] == [pytest.approx((2, 4))]       # problem 1 has 3 right answers on one side: too few
    assert "strategies" not in measures({0: [{"correct": True}]}, {0: [{"correct": True, "label": "a"}]})
    assert "maj@16" not in found
    votes = {"4": 3, "5": 2, None: 1}
    voted = [{"correct": vote == "4", "vote": vote, "gold": "4"} for vote, n in votes.items() for _ in range(n)]
    assert measures({0: voted}, {0: voted[:5]})["maj@4"] == [(100 * maj_at_k(["4", "4", "4", "5", "5"], "4", 4),) * 2]
    assert measures({0: voted}, {0: voted})["maj@4"] == [(100 * maj_at_k(["4", "4", "4", "5", "5", None], "4", 4),) * 2]


def test_expected_maximum_of_normals():
    """0 for one, 1/sqrt(pi) for two, 3/(2 sqrt(pi)) for three; 1.5388 for ten (Teichroew 1956)."""
    assert [expected_maximum(k) for k in (1, 2, 3, 10)] == pytest.approx(
        [0, 1 / math.sqrt(math.pi), 1.5 / math.sqrt(math.pi), 1.53875], abs=1e-5)


def test_gain_of_choosing_is_that_of_noise_alone():
    """Ten checkpoints with independent noise of sd 1 on 400 problems gain 1.54 / 20.

    Better means, or hardness they share, add nothing.
    """
    rng = np.random.default_rng(1)
    noise = rng.normal(size=(10, 400))
    expected = expected_maximum(10) / 20
    assert gain_of_choosing(noise) == pytest.approx(expected, rel=0.1)
    assert gain_of_choosing(noise + np.arange(10)[:, None]) == pytest.approx(gain_of_choosing(noise))
    assert gain_of_choosing(noise + 3 * rng.normal(size=(1, 400))) == pytest.approx(expected, rel=0.1)
    assert gain_of_choosing(np.repeat(noise[:1], 10, 0)) == pytest.approx(0, abs=0.003)


def test_compare_from_files(tmp_path):
    """B answers one of four problems twice more often.

    The sign, the means and the sentence are those of A - B, and only common benchmarks count.
    """
    a = evaluation(tmp_path / "a", [[1, 0], [1, 0], [1, 0], [0, 0]], "first")
    b = evaluation(tmp_path / "b", [[1, 0], [1, 0], [1, 0], [1, 1]], "second")
    evaluation(b, [[1, 1]], "second", benchmark="extra")
    text = compare([a, b])
    line = next(line for line in text.splitlines() if line.startswith("b accuracy")).split()
    assert line[:5] == ["b", "accuracy", "37.5", "62.5", "-25.0"] and line[-1] == "4"
    assert "b, accuracy: A - B = -25.0 ±" in text and "not distinguishable at n = 4" in text
    assert "only one of them has extra" in text and "average" not in text
    assert "b pass@2" in text and "temperature" not in text
    assert "+0.0 ± 0.0 points: not distinguishable at n = 4" in compare([a, a.parent / "." / "a" / ".." / "a"])


def test_compare_averages_benchmarks_and_names_settings_that_differ(tmp_path):
    folders = []
    for name, values in (("a", [[[1], [1]], [[1], [0], [0], [0]]]), ("b", [[[0], [1]], [[0], [0], [0], [0]]])):
        for benchmark, right in zip(("x", "y"), values):
            folders.append(evaluation(tmp_path / name, right, name, benchmark=benchmark))
    path = tmp_path / "b" / "results.jsonl"
    path.write_text(path.read_text().replace("0.6}", "1.0}"))
    text = compare([tmp_path / "a", tmp_path / "b"])
    assert next(line for line in text.splitlines() if line.startswith("average accuracy")).split()[2:5] == [
        "62.5", "25.0", "+37.5"]
    assert "eval.temperature differs, 0.6 and 1.0" in text and "average, accuracy: A - B = +37.5" in text
    for name, system in (("a", ""), ("b", "Be brief")):
        (tmp_path / name / "config.toml").write_text(
            f'[data]\nsystem = "{system}"\n[output]\ndir = "{name}"\n[model]\npath = "{name}"\n')
    text = compare([tmp_path / "a", tmp_path / "b"])
    assert "data.system differs, '' and 'Be brief'" in text and text.count("differs") == 2


def test_checkpoints_of_a_run_are_a_curve_with_a_warning(tmp_path):
    """In the order of their steps, the final policy last, whatever the order of the arguments.

    Other runs are not in it.
    """
    final = evaluation(tmp_path / "f", [[1, 1], [1, 0]], "runs/x/final")
    early = evaluation(tmp_path / "e", [[0, 0], [1, 0]], "runs/x/checkpoints/step-000050/policy")
    late = evaluation(tmp_path / "l", [[1, 1], [1, 1]], "runs/x/checkpoints/step-000100/policy")
    other = evaluation(tmp_path / "o", [[1, 1], [1, 1]], "runs/y/final")
    text = compare([final, late, other, early])
    curve = [line.split()[:4] for line in text[text.index("checkpoints of runs/x on b"):].splitlines()[2:5]]
    assert curve == [["50", "25.0", "±", "25.0"], ["100", "100.0", "±", "0.0"], ["final", "75.0", "±", "25.0"]]
    assert "the best is step 100 with 100.0" in text and "best of 3 equally good" in text
    assert "checkpoints of runs/y" not in text and "3 comparisons" in text


def test_a_run_alone_is_a_curve():
    path = Path("benchmarks/tiny_runs/tiny-seed0.metrics.jsonl")
    last = [json.loads(line) for line in path.read_text().splitlines() if '"eval"' in line][-1]
    text, accuracy, se = compare([path]), 100 * last["accuracy"], 100 * last["accuracy_se"]
    assert (f"   200      {accuracy:.1f} ± {se:.1f}     {last['effective_strategies']:.2f} "
            f"({last['effective_strategies_problems']} of 200)") in text
    assert f"gains up to {expected_maximum(2) * se * 2 ** 0.5:.1f} points" in text


def test_a_folder_of_evaluations_is_all_of_them(tmp_path):
    """output.dir holds a folder per model; names decide which is A."""
    b, a = evaluation(tmp_path / "all" / "b", [[1], [1]],
                      "second"), evaluation(tmp_path / "all" / "a", [[1], [0]], "first")
    assert compare([tmp_path / "all"]) == compare([a, b])


def changed(folder: Path, change, copy: Path, benchmark: str = "b") -> Path:
    """A copy of an evaluation with `change` made to each of its samples, and the figures of these."""
    shutil.copytree(folder, copy)
    file = copy / f"{benchmark}.samples.jsonl"
    samples = [change(json.loads(line)) for line in file.read_text().splitlines()]
    samples = [sample for sample in samples if sample]
    write_jsonl(file, samples)
    write_jsonl(copy / "results.jsonl", [{"model": "other", **summarize(benchmark, samples)}])
    return copy


def test_problems_are_paired_by_what_they_are(tmp_path):
    """The same problems in another order are equal one by one, whatever their places.

    A pairing by place would see differences of 100 points that cancel, as wide as the interval.
    """
    right = [[1, 1], [0, 0], [1, 1], [0, 1], [0, 0]]
    a = evaluation(tmp_path / "a", right)
    b = changed(a, lambda sample: sample | {"problem": 4 - sample["problem"]}, tmp_path / "b")
    assert "b, accuracy: A - B = +0.0 ± 0.0 points" in compare([a, b])
    policies = [changed(folder, dict, folder.with_suffix(".c")) for folder in (a, b)]
    for folder, name in zip(policies, ("checkpoints/step-000001/policy", "final")):
        write_jsonl(folder / "results.jsonl", [json.loads((folder / "results.jsonl").read_text())
                                               | {"model": f"r/{name}"}])
    assert "gains 0.0 points by chance" in compare(policies), "equal checkpoints, without the noise of a wrong order"


def test_what_only_one_has_is_said_and_left_out(tmp_path):
    """Other problems, problems with a corrected gold, another number of samples: the rest is compared."""
    a = evaluation(tmp_path / "a", [[1, 1], [0, 0], [1, 0], [0, 1], [1, 1], [0, 0], [0, 0]])
    b = changed(a, lambda sample: None if sample["problem"] < 4 or sample["sample"] else
                sample | {"problem": sample["problem"] - 4, "gold": "5" if sample["problem"] == 6 else "4"},
                tmp_path / "b")
    c = changed(b, lambda sample: sample | {"id": sample["id"] + "new" * (sample["problem"] == 0)}, tmp_path / "c")
    text = compare([a, b])
    assert 'note: b, 4 problems only in A left out: id "p0", "p1", "p2", ...\n' in text and "only in B" not in text
    assert 'b, 1 problem with another gold in B left out: id "p6" ("4" and "5"); regrade --golds gives both' in text
    line = next(line for line in text.splitlines() if line.startswith("b accuracy"))
    assert line.split()[2:5] == ["50.0", "50.0", "+0.0"] and line.endswith(" 2") and "pass@" not in text
    assert 'note: b, 1 problem only in B left out: id "p4new"' in compare([a, c])
    for folder, name in ((a, "checkpoints/step-000001/policy"), (c, "final")):
        write_jsonl(folder / "results.jsonl", [json.loads((folder / "results.jsonl").read_text())
                                               | {"model": f"r/{name}"}])
    assert "checkpoints of r on b, the 1 problems that all have" in compare([a, c])


def test_problems_with_one_id_are_told_apart_by_gold_and_order(tmp_path):
    a = evaluation(tmp_path / "a", [[1], [0], [1], [1]])
    one = changed(a, lambda sample: sample | {"id": "x", "gold": str(sample["problem"] // 2)}, tmp_path / "one")
    two = changed(one, lambda sample: sample | {"problem": (sample["problem"] + 2) % 4}, tmp_path / "two")
    text = compare([one, two])
    assert "A - B = +0.0 ± 0.0" in text and "2 have the id and the gold of another; such problems are paired" in text
    fewer = changed(two, lambda sample: sample if sample["problem"] else None, tmp_path / "fewer")
    assert '1 problem only in A left out: id "x"' in compare([one, fewer])


@pytest.mark.parametrize("own", [0, None])
def test_problems_without_ids_are_paired_by_place(tmp_path, own):
    """Their ids are their places, and a file in another order could agree in a place by chance: refused, if any gold
    differs. The first half of a file is the same problems."""
    a = evaluation(tmp_path / "a", [[1], [0], [1], [1]])
    a = changed(a, lambda sample: sample | {"id": sample["problem"] if own == 0 else None,
                                            "gold": str(sample["problem"] % 3)}, tmp_path / "places")
    half = changed(a, lambda sample: sample if sample["problem"] < 2 else None, tmp_path / "half")
    assert "2 problems only in A left out: id 2, 3" in compare([a, half])
    turned = changed(a, lambda sample: sample | {"problem": 3 - sample["problem"],
                                                 **({"id": 3 - sample["problem"]} if own == 0 else {})}, tmp_path / "t")
    with pytest.raises(ValueError, match="same problems of b: without ids .* 2 have other golds there, such as '1' and "
                                         "'2' at 1; give the problems ids"):
        compare([a, turned])


def test_settings_that_mean_the_same_do_not_differ(tmp_path):
    """An earlier version did not write a setting that has its default now; the request may come from data.template."""
    a, b = evaluation(tmp_path / "a", [[1], [0]]), evaluation(tmp_path / "b", [[1], [0]])
    (a / "config.toml").write_text('[data]\ntemplate = "Solve {problem}"\n')
    (b / "config.toml").write_text('[reward]\ncorrect = ""\n[data]\nsystem = ""\n')
    record = json.loads((b / "results.jsonl").read_text())
    record["settings"] |= {"prompt": "Solve {problem}", "top_p": 0.95, "slots": 3, "label": ""}
    write_jsonl(b / "results.jsonl", [record])
    assert "differs" not in compare([a, b])
    (b / "config.toml").write_text('[reward]\ncorrect = "mine.py:right"\n')
    assert "note: reward.correct differs, '' and 'mine.py:right'" in compare([a, b])


def test_what_cannot_be_compared_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    a = evaluation(tmp_path / "a", [[1], [0]])
    other_ids = changed(a, lambda sample: sample | {"id": sample["id"] + "x"}, tmp_path / "b")
    for other, words in ((other_ids, 'no problem in common: b, 2 problems only in A left out: id "p0", "p1"; b, 2 '
                                     'problems only in B left out: id "p0x", "p1x"'),
                         (evaluation(tmp_path / "c", [[1], [0]], gold="5"), "common: b, 2 problems with another gold"),
                         (evaluation(tmp_path / "d", [[1]], benchmark="x"), "no benchmark in common"),
                         (tmp_path / "none", "does not exist"),
                         (tmp_path / "empty", "has neither metrics.jsonl nor results.jsonl")):
        with pytest.raises(ValueError, match=words):
            compare([a, other])
    with pytest.raises(ValueError, match="name another evaluation"):
        compare([a])


def test_several_golds_are_voted_for_graded_and_compared(tmp_path):
    """A right answer to any of them is right, all right ones vote for the first, and the list is the problem's gold."""
    folder = evaluation(tmp_path / "a", [[1, 1, 0], [1, 0, 0]])
    file = folder / "b.samples.jsonl"
    file.write_text(file.read_text().replace('"gold": "4"', '"gold": ["4", "5"]').replace("boxed{0}", "boxed{5}"))
    text = regrade(folder, "", tmp_path / "out")
    assert "accuracy 0.5000 -> 1.0000, 3 verdicts changed" in text and "'5' for ['4', '5']" in text
    samples = [json.loads(line) for line in (tmp_path / "out" / "b.samples.jsonl").read_text().splitlines()]
    assert {sample["vote"] for sample in samples} == {"4"} and {sample["answer"] for sample in samples} == {"4", "5"}
    assert json.loads((tmp_path / "out" / "results.jsonl").read_text())["maj_at_k"]["2"] == 1
    assert "b, maj@2: A - B = -50.0" in compare([folder, tmp_path / "out"])


def problems_file(path: Path, golds: dict, **columns) -> str:
    write_jsonl(path, [{"id": key, "problem": "2+2", "answer": gold, **columns} for key, gold in golds.items()])
    return str(path)


def test_regrade_by_corrected_golds(tmp_path):
    """One gold mended, one that has two now, one as it was, one that the file does not have; the evaluation stays."""
    folder, out = evaluation(tmp_path / "a", [[1, 0], [1, 0], [1, 0], [0, 1]]), tmp_path / "out"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    fixed = problems_file(tmp_path / "fixed.jsonl", {"p2": "4", "p0": 0, "p1": ["5", "0"]})
    text = regrade(folder, "", out, golds=[fixed])
    assert "2 of 4 golds changed" in text and "does not have 1 of the problems: these keep theirs" in text
    assert """    "p0": '4' -> '0'\n    "p1": '4' -> ['5', '0']\n""" in text and '"p2"' not in text
    assert "8 completions, accuracy 0.5000 -> 0.5000, 4 verdicts changed" in text
    samples = [json.loads(line) for line in (out / "b.samples.jsonl").read_text().splitlines()]
    found = {(s["id"], s["sample"]): (s["gold"], s["correct"], s["vote"]) for s in samples}
    assert [found[f"p{p}", i] for p in range(4) for i in (0, 1)] == [
        ("0", False, "4"), ("0", True, "0"), (["5", "0"], False, "4"), (["5", "0"], True, "5"),
        ("4", True, "4"), ("4", False, "0"), ("4", False, "0"), ("4", True, "4")]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert "b, 2 problems with another gold in B left out" in compare([folder, out])
    again = regrade(out, "", tmp_path / "back", golds=[problems_file(tmp_path / "old.jsonl", {"p0": "4", "p1": "4"})])
    assert "2 of 4 golds changed" in again and "A - B = +0.0 ± 0.0" in compare([folder, tmp_path / "back"])


def test_golds_of_several_benchmarks_are_named(tmp_path):
    folder = evaluation(evaluation(tmp_path / "a", [[1, 0]], benchmark="x"), [[1, 1]], benchmark="y")
    fixed = problems_file(tmp_path / "fixed.jsonl", {"p0": "0"})
    text = regrade(folder, "", None, golds=[f"y={fixed}"])
    assert "y.samples.jsonl: 1 of 1 golds changed" in text and "accuracy 1.0000 -> 0.0000" in text
    assert "x.samples.jsonl: 2 completions, accuracy 0.5000 -> 0.5000" in text
    for golds in ([fixed], [f"y={fixed}", f"y={fixed}"]):
        with pytest.raises(ValueError, match="once for each benchmark whose golds these are.* x=.*there are x, y"):
            regrade(folder, "", None, golds=golds)


@pytest.mark.parametrize("golds, words", [
    ({"p0": "4", "q": "5", "r": "6"}, 'no samples of 2 of its 3 problems, such as "q", "r"; problems are known by'),
    ({0: "4"}, "no samples of 1 of its 1 problems"), ({"p0": "\\frac{1"}, "no boxed answer can equal")])
def test_golds_for_other_problems_are_refused(tmp_path, golds, words):
    folder = evaluation(tmp_path / "a", [[1, 0], [0, 0]])
    with pytest.raises(ValueError, match=words):
        regrade(folder, "", tmp_path / "out", golds=[problems_file(tmp_path / "f.jsonl", golds)])
    assert not (tmp_path / "out").exists()


def test_ids_that_do_not_say_which_problem_are_refused(tmp_path):
    """Two golds for one id, one id for two problems, and a part of a file whose problems have no ids."""
    folder = evaluation(tmp_path / "a", [[1], [0], [1]])
    twice = tmp_path / "twice.jsonl"
    write_jsonl(twice, [{"id": "p0", "problem": "x", "answer": gold} for gold in "45"])
    with pytest.raises(ValueError, match="""two golds for the problem "p0": '4' and '5'"""):
        regrade(folder, "", None, golds=[str(twice)])
    same = changed(folder, lambda sample: sample | {"id": "p0"}, tmp_path / "same")
    with pytest.raises(ValueError, match='has 3 problems with the id "p0"; give each its own'):
        regrade(same, "", None, golds=[problems_file(tmp_path / "p0.jsonl", {"p0": "4"})])
    places = changed(folder, lambda sample: sample | {"id": sample["problem"]}, tmp_path / "places")
    for golds, right in (("505", "2 of 3 golds changed"), ("50", None)):
        write_jsonl(twice, [{"problem": "x", "answer": gold.replace("0", "4")} for gold in golds])
        if right:
            assert right in regrade(places, "", None, golds=[str(twice)])
        else:
            with pytest.raises(ValueError, match="without ids of their own, its 2 problems must be all 3 of"):
                regrade(places, "", None, golds=[str(twice)])


def test_golds_of_a_run_are_found_by_id_and_text(finished_groups, tmp_path):
    """A training set may have more problems than were drawn, and ids that are places."""
    (finished_groups / "config.toml").write_text("[run]\nseed = 0\n")
    golds = tmp_path / "golds.jsonl"
    write_jsonl(golds, [{"id": "x", "problem": "2+2", "answer": "5"}, {"id": "x", "problem": "1+1", "answer": "2"}])
    assert "1 of 1 golds changed" in regrade(finished_groups, "", tmp_path / "out", golds=[str(golds)])
    record = json.loads((tmp_path / "out" / "samples.jsonl").read_text())
    assert record["answer"] == "5" and [c["correct"] for c in record["completions"]] == [False, True]
    write_jsonl(golds, [{"id": "x", "problem": "3+3", "answer": "6"}])
    with pytest.raises(ValueError, match="no samples of 1 of its 1 problems"):
        regrade(finished_groups, "", None, golds=[str(golds)])
    with pytest.raises(ValueError, match="--golds is for the grader"):
        regrade(finished_groups, "", None, correct="mine.py:f", golds=[str(golds)])


RUN_LINE = json.dumps({"kind": "run", "config": {}, "argv": []})


@pytest.mark.parametrize("read, text, words", [
    (read_run, "", "metrics.jsonl is empty"), (read_run, "{}\n", "line 1: 'kind' is missing"),
    (read_run, '{"kind": "run"}\n', "line 1: 'config' is missing"),
    (read_run, RUN_LINE + '\n{"kind": "train", "step": 1, "reward": "x"}\n', "line 2: 'reward' is \"x\""),
    (read_run, RUN_LINE + "\nnonsense\n", "line 2: not valid JSON"),
    (read_run, '{"kind": "eval", "step": 1, "benchmark": "b", "accuracy": true}\n', "line 1: 'accuracy' is true"),
    (read_run, '{"kind": "other"}\n', "no record of kind"),
    (read_groups, "[1]\n", r"line 1: \[1\] is not a sample"),
    (read_groups, '{"step": 1, "position": 0, "completions": [{"text": 3}]}\n', "line 1, completion 1: 'text' is 3"),
    (read_groups, '{"problem": 1}\n', "line 1: 'sample' is missing"), (read_groups, None, "does not exist")])
def test_foreign_files_are_named_with_their_line(tmp_path, read, text, words):
    path = tmp_path / "metrics.jsonl"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=words):
        list(read(path)) if read is read_groups else read(path)


def test_a_line_that_is_being_written_is_left_out(tmp_path):
    """A live run's file may end within a record; only there, and only without a newline."""
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{RUN_LINE}\n{{"kind": "train", "step": 1, "reward": 1, "accuracy": 1}}\n{{"kind": "tra')
    assert [record["step"] for record in read_run(path).train] == [1]


def test_records_are_told_apart(tmp_path):
    """Seeds of a recipe have one name, the command's; samples of an evaluation come in order, by problem."""
    path = tmp_path / "r" / "metrics.jsonl"
    path.parent.mkdir()
    path.write_text(json.dumps({"kind": "run", "config": {"run": {"seed": 3}, "dra": {"sharpen": 2}},
                                "argv": ["dra_grpo.py", "--config", "configs/x.toml", "run.seed=3", "dra.sharpen=2"]})
                    + "\n")
    folder = evaluation(tmp_path / "e", [[1, 0, 0], [0, 1, 1]])
    runs, evaluations = read_any([tmp_path / "r", folder])
    assert runs[0].label == "x dra.sharpen=2" and json.loads(runs[0].recipe) == {"dra": {"sharpen": 2}}
    assert runs[0].samples is None
    assert [[sample["correct"] for sample in samples] for samples in evaluations[0].problems["b"].values()] == [
        [True, False, False], [False, True, True]]
    assert "text" not in evaluations[0].problems["b"][0][0] and read_evaluation(folder).model == "m"
    assert [(group["id"], [c["reward"] for c in group["completions"]])
            for group in read_groups(folder / "b.samples.jsonl")] == [("p1", [1, 1, 0]), ("p0", [0, 0, 1])]


def test_a_run_named_twice_is_one_seed(tmp_path):
    path = tmp_path / "r" / "metrics.jsonl"
    path.parent.mkdir()
    path.write_text(RUN_LINE + "\n")
    assert len(read_any([path, path.parent, tmp_path / "r" / ".." / "r"])[0]) == 1


def test_regrade_finds_wrong_verdicts(tmp_path):
    """Two verdicts are turned around in the file; regrade turns them back, and the results it writes are those of the
    right ones."""
    folder, out = evaluation(tmp_path / "a", [[1, 0], [1, 1]]), tmp_path / "out"
    lines = (folder / "b.samples.jsonl").read_text().splitlines()
    swapped = [line.replace('"correct": true', '"correct": false') if i in (0, 1) else line
               for i, line in enumerate(lines)]
    (folder / "b.samples.jsonl").write_text("\n".join(swapped) + "\n")
    (folder / "results.jsonl").write_text(
        (folder / "results.jsonl").read_text().replace('"settings"', '"vendi": 2.0, "settings"'))
    text = regrade(folder, "", out)
    assert "4 completions, accuracy 0.2500 -> 0.7500, 2 verdicts changed" in text and "line 1: '4' for '4'" in text
    assert "2  equal -> equal" in text
    assert (out / "b.samples.jsonl").read_text().splitlines() == lines
    record = json.loads((out / "results.jsonl").read_text())
    assert (record["model"], record["accuracy"], record["settings"]) == ("m", 0.75, {"temperature": 0.6})
    assert "vendi" not in record
    regrade(folder / "b.samples.jsonl", "", tmp_path / "of_a_file")
    assert (tmp_path / "of_a_file" / "results.jsonl").read_text() == (out / "results.jsonl").read_text()
    for taken in (folder, out):
        with pytest.raises(ValueError, match="holds b.samples.jsonl already; name another folder"):
            regrade(folder, "", taken)
    with pytest.raises(ValueError, match="--opening"):
        regrade(folder, None, None)


def test_regrade_of_several_benchmarks_averages_them_again(tmp_path):
    """Verdicts are turned around in one of two benchmarks.

    What regrade writes can be compared, and its average is that of the new verdicts.
    """
    folder = evaluation(evaluation(tmp_path / "a", [[1, 0]], benchmark="x"), [[1, 1]], benchmark="y")
    file = folder / "y.samples.jsonl"
    file.write_text(file.read_text().replace('"correct": true', '"correct": false'))
    regrade(folder, "", tmp_path / "out")
    assert (tmp_path / "out" / "results.jsonl").read_text() == (folder / "results.jsonl").read_text()
    assert "average, accuracy: A - B = -50.0" in compare([folder, tmp_path / "out"])


def test_regrade_keeps_what_nothing_was_sampled_for(tmp_path):
    folder, out = evaluation(tmp_path / "a", [[0, 0]]), tmp_path / "out"
    file = folder / "b.samples.jsonl"
    file.write_text(file.read_text().replace('"reason": "different"', '"reason": "prompt too long"').replace(
        '"finish": "stop"', '"finish": "prompt"'))
    regrade(folder, "", out)
    assert (out / "b.samples.jsonl").read_text().count("prompt too long") == 2


def test_samples_that_are_not_whole_are_refused_before_grading(tmp_path):
    folder = evaluation(tmp_path / "a", [[1, 0], [1, 1]])
    file = folder / "b.samples.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    for text, words in (("".join(lines[:3]), "problems have 1 to 2 samples"),
                        (lines[0].replace('"finish"', '"end"'), "'finish' is missing"),
                        (lines[0][:9], "has no completions")):
        file.write_text(text)
        with pytest.raises(ValueError, match=words):
            regrade(folder, "", tmp_path / "out")
        with pytest.raises(ValueError, match=r"has all 2 samples of [01] problems where .*results.jsonl, line 1 counts "
                                             r"2; evaluate again"):
            compare([folder, folder])
    assert not (tmp_path / "out").exists()
    (folder / "results.jsonl").write_text('{"model": "half')
    with pytest.raises(ValueError, match="no record of a benchmark"):
        compare([folder, folder])


def test_regrade_reads_the_whole_turn(tmp_path):
    """A box within reasoning that never ended is no answer where the template has written <think>."""
    folder = evaluation(tmp_path / "a", [[1]])
    assert "1.0000 -> 1.0000" in regrade(folder, "", None) and "1.0000 -> 0.0000" in regrade(folder, "<think>\n", None)


def test_regrade_of_a_run_leaves_what_was_trained_on(finished_groups, tmp_path):
    out = tmp_path / "out"
    assert "0 verdicts changed" in regrade(finished_groups, "", out)
    assert (out / "samples.jsonl").read_text() == (finished_groups / "samples.jsonl").read_text()
    assert not (out / "results.jsonl").exists()


@pytest.fixture
def finished_groups(tmp_path):
    completions = [{"text": f"\\boxed{{{answer}}}", "answer": answer, "correct": answer == "4",
                    "reason": "equal" if answer == "4" else "different", "reward": 0.5, "smi": 1.0, "weight": 0.5,
                    "adjusted": 0.25, "advantage": 0.1} for answer in ("4", "5")]
    folder = tmp_path / "run"
    folder.mkdir()
    write_jsonl(folder / "samples.jsonl",
                [{"step": 1, "position": 0, "id": "x", "problem": "2+2", "answer": "4", "completions": completions}])
    return folder


def test_main_prints_a_comparison(tmp_path, capsys):
    a = evaluation(tmp_path / "a", [[1, 0], [1, 1]])
    assert main(["compare", str(a), str(evaluation(tmp_path / "b", [[1, 0], [0, 0]]))]) == 0
    assert "b, accuracy: A - B = +50.0" in capsys.readouterr().out


def test_a_foreign_file_is_one_line_and_exit_code_2(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["report", "compare", "README.md"])
    with pytest.raises(SystemExit) as ended:
        run_main(main)
    assert ended.value.code == 2 and capsys.readouterr().err.startswith("error: README.md, line 1: not valid JSON")


@pytest.mark.parametrize("command", ["page", "regrade --opening="])
def test_a_folder_that_cannot_be_written_is_one_line(command, monkeypatch, tmp_path, capsys):
    a, file = evaluation(tmp_path / "a", [[1, 0]]), tmp_path / "file"
    file.touch()
    monkeypatch.setattr(sys, "argv", ["report", *command.split(), str(a), "--out", str(file / "x")])
    with pytest.raises(SystemExit) as ended:
        run_main(main)
    assert ended.value.code == 2 and capsys.readouterr().err == f"error: {file / 'x'}: Not a directory\n"
