"""What evaluations on the same problems allow to conclude of their policies, and checkpoints of one run as a curve."""
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from os.path import normpath
from pathlib import Path

import numpy as np
from scipy.integrate import quad
from scipy.stats import bootstrap, norm, permutation_test, t

from config import build, free_keys
from data import first_gold
from eval import STRATEGY_SAMPLES, Config
from metrics import effective_labels, maj_at_k, pass_at_k, standard_error, strategies_of
from report.read import Evaluation, Run, config_of, read_any

RESAMPLES = 10_000


def paired_bootstrap(differences: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """(mean, low, high): mean over benchmarks of the mean difference over problems, and its 95 % interval over
    problems.

    One sequence per benchmark with the difference of the two models on each problem. Problems are drawn within each
    benchmark, so the interval holds for problems like these, with the completions sampled anew; it knows nothing of how
    another training run would have ended. Plain percentiles are too narrow for few problems (at avg@16 they hold the
    truth 85 % of the time for 5, 91 % for 10, 93 % for 30); these are the expanded ones of Hesterberg (2015,
    arXiv:1411.5279), at the smallest benchmark's size: 95 % for each. One problem has no interval: -inf, inf.
    """
    samples = [np.asarray(difference, float) for difference in differences]
    centre = float(np.mean([sample.mean() for sample in samples]))
    fewest = min(map(len, samples))
    if fewest < 2:
        return centre, -np.inf, np.inf
    interval = bootstrap(samples, lambda *parts, axis: np.mean([part.mean(axis) for part in parts], 0), vectorized=True,
                         n_resamples=RESAMPLES,
                         batch=max(1, 10**7 // sum(map(len, samples))), method="percentile",
                         confidence_level=1 - 2 * expanded_tail(fewest),
                         rng=np.random.default_rng(0)).confidence_interval
    return centre, float(interval.low), float(interval.high)


def expanded_tail(n: int) -> float:
    """Share of resamples beyond each end of a 95 % interval for n values.

    For 2.5 %, t instead of normal, and deviations with ddof 1 instead of 0.
    """
    return float(norm.sf(t.isf(0.025, n - 1) * np.sqrt(n / (n - 1))))


def sign_flip_p(differences: Sequence[Sequence[float]]) -> float:
    """Two-sided p-value of the mean difference if either model might have been A on each problem: signs are flipped at
    random.

    A bootstrap of few differences that are not 0 cannot see how easily they come to lie on one side; this counts it.
    """
    weighted_N = np.concatenate([np.asarray(part, float) / len(part) for part in differences])
    if len(weighted_N) == 1:
        return 1.0
    return float(permutation_test((weighted_N,), np.sum, permutation_type="samples", vectorized=True,
                                  n_resamples=RESAMPLES,
                                  batch=max(1, 10**7 // len(weighted_N)), rng=np.random.default_rng(0)).pvalue)


def conclusion(centre: float, low: float, high: float, p: float, n: int, unit: str = "points", digits: int = 1) -> str:
    """What a difference A - B with its interval and p-value allows to say: a model is ahead if both agree."""
    spread = max(high - centre, centre - low)
    if not np.isfinite(spread):
        return f"A - B = {centre:+.{digits}f} {unit}: one problem says nothing"
    verdict = f"{'A' if low > 0 else 'B'} is ahead" if (low > 0 or high < 0) and p < 0.05 else "not distinguishable"
    return f"A - B = {centre:+.{digits}f} ± {spread:.{digits}f} {unit}: {verdict} at n = {n}"


def measures(a: dict[int, list[dict]], b: dict[int, list[dict]]) -> dict[str, list[tuple[float, float]]]:
    """Values (of a, of b) on each problem of one benchmark: accuracy, pass@k and maj@k in points, effective strategies
    where both have enough right answers.

    pass@k and maj@k are those of as many samples as both have, their first: with more on one side, equal models would
    differ by the other's noise.
    """
    pairs = [(a[problem], b[problem]) for problem in a]
    n = min(len(samples) for pair in pairs for samples in pair)
    k = 2 ** (n.bit_length() - 1)
    equal = [[samples[:n] for samples in pair] for pair in pairs]

    def right(samples: list[dict]) -> int:
        return sum(sample["correct"] for sample in samples)

    found = {"accuracy": [tuple(100 * right(samples) / len(samples) for samples in pair) for pair in pairs]}
    if k > 1:
        found[f"pass@{k}"] = [tuple(100 * pass_at_k(n, right(samples), k) for samples in pair) for pair in equal]
    if k > 1 and all("vote" in sample for pair in equal for samples in pair for sample in samples):
        found[f"maj@{k}"] = [tuple(100 * maj_at_k([sample["vote"] for sample in samples],
                                                  first_gold(samples[0]["gold"]), k) for samples in pair)
                             for pair in equal]
    labels = [
        tuple([str(sample["label"]) for sample in samples if sample["correct"]][:STRATEGY_SAMPLES] for samples in pair)
              for pair in pairs if all("label" in sample for samples in pair for sample in samples)]
    enough = [pair for pair in labels if min(map(len, pair)) == STRATEGY_SAMPLES]
    if enough:
        found["strategies"] = [tuple(map(effective_labels, pair)) for pair in enough]
    return found


def conditions(evaluation: Evaluation, benchmark: str) -> dict[str, object]:
    """The settings under which a benchmark was evaluated, "section.key": value; those that were not written have their
    defaults, and eval.prompt is the request wherever it came from."""
    sections = {**config_of(evaluation.path), "eval": evaluation.results[benchmark].get("settings", {})}
    written = {f"{section}.{key}": value for section, values in sections.items() for key, value in values.items()}
    defaults = asdict(build(Config, {"model": {"path": evaluation.model}}))
    settings = {f"{section}.{key}": value for section, values in defaults.items() for key, value in values.items()}
    settings |= written
    settings["eval.prompt"] = settings["eval.prompt"] or settings["data.template"]
    shown = {"model.path", "eval.benchmarks", "eval.samples_of", "eval.seed"}       # next to the figures
    hidden = {"data.template", *shown, *free_keys(Config)}
    return {key: value for key, value in settings.items()
            if key not in hidden and not key.startswith("diversity.")}


Problems = dict[tuple[str, str, int], list[dict]]       # samples of problems by what they are


def id_of(place: int, samples: list[dict]) -> object:
    """The id of a problem: its place where it has none of its own."""
    found = samples[0].get("id")
    return place if found is None else found


def identified(problems: dict[int, list[dict]]) -> Problems:
    """The samples of each problem by its id, its gold, and which of those with both it is (0 for the first)."""
    found, again = {}, Counter()
    for place, samples in problems.items():
        known = json.dumps(id_of(place, samples)), json.dumps(samples[0].get("gold"))
        found[*known, again[known]] = samples
        again[known] += 1
    return found


def require_one_order(a: Evaluation, b: Evaluation, name: str) -> None:
    """ValueError if only their places tell the problems of a benchmark apart, and not all golds agree there."""
    sides = a.problems[name], b.problems[name]
    if any(id_of(place, samples) != place for side in sides for place, samples in side.items()):
        return                                          # with ids of their own
    golds = [{place: samples[0].get("gold") for place, samples in side.items()} for side in sides]
    if differ := [place for place, gold in golds[0].items() if gold != golds[1].get(place, gold)]:
        raise ValueError(f"{a.path} and {b.path} did not see the same problems of {name}: without ids of their own "
                         f"they are paired by place, and {len(differ)} have other golds there, such as "
                         f"{golds[0][differ[0]]!r} and {golds[1][differ[0]]!r} at {differ[0]}; give the problems ids "
                         "and evaluate again, or both the same golds with python -m report regrade --golds")


def pair_problems(a: Evaluation, b: Evaluation, name: str) -> tuple[Problems, Problems, list[str]]:
    """The problems of a benchmark that both evaluations have, in one order, and notes on those that are left out."""
    require_one_order(a, b, name)
    ours, theirs = identified(a.problems[name]), identified(b.problems[name])
    common = [key for key in ours if key in theirs]
    only_ours = [(known, gold) for known, gold, again in ours if (known, gold, again) not in theirs]
    only_theirs = [(known, gold) for known, gold, again in theirs if (known, gold, again) not in ours]
    theirs_of = dict(only_theirs)
    others = {known: (gold, theirs_of[known]) for known, gold in only_ours if known in theirs_of}
    notes = []
    for what, ids in (("only in A", [known for known, _ in only_ours if known not in others]),
                      ("only in B", [known for known, _ in only_theirs if known not in others]),
                      ("with another gold in B", list(others))):
        if ids:
            first = ", ".join(known[:60] for known in ids[:3]) + ", ..." * (len(ids) > 3)
            notes.append(f"{len(ids)} problem{'s' * (len(ids) > 1)} {what} left out: id {first}")
    if others:
        notes[-1] += " ({} and {}); regrade --golds gives both the same golds".format(*next(iter(others.values())))
    if again := sum(place > 0 for *_, place in common):
        notes.append(f"{again} have the id and the gold of another; such problems are paired in their order")
    return *({key: side[key] for key in common} for side in (ours, theirs)), notes


def compare_two(a: Evaluation, b: Evaluation) -> list[str]:
    """Table and sentences for one pair, over the problems that both have; ValueError if there are none."""
    paired = {name: pair_problems(a, b, name) for name in a.problems if name in b.problems}
    if not paired:
        raise ValueError(f"{a.path} and {b.path} have no benchmark in common ({', '.join(a.problems)} and "
                         f"{', '.join(b.problems)})")
    if not any(ours for ours, *_ in paired.values()):
        raise ValueError(f"{a.path} and {b.path} have no problem in common: "
                         + "; ".join(f"{name}, {note}" for name, (*_, notes) in paired.items() for note in notes))
    lines = [f"A  {a.model}  ({a.path})", f"B  {b.model}  ({b.path})"]
    differ = {}
    for name in paired:
        first, second = conditions(a, name), conditions(b, name)
        differ |= {key: f"{key} differs, {first.get(key)!r} and {second.get(key)!r}" for key in {**first, **second}
                   if first.get(key) != second.get(key)}
    lines += [f"   note: {text}" for text in differ.values()]
    lines += [f"   note: {name}, {note}" for name, (*_, notes) in paired.items() for note in notes]
    left_out = [name for name in [*a.problems, *b.problems] if name not in paired]
    lines += [f"   note: only one of them has {', '.join(left_out)}"] if left_out else []
    lines.append(f"\n{'':<34}{'A':>8}{'B':>8}{'A - B':>8}   {'95 % interval':<16}{'p':>7}{'problems':>10}")
    by_measure: dict[str, list[tuple[str, list[tuple[float, float]]]]] = {}
    for name, (ours, theirs, _) in paired.items():
        for measure, pairs in measures(ours, theirs).items() if ours else ():
            by_measure.setdefault(measure, []).append((name, pairs))
    sentences = []
    for measure, parts in by_measure.items():
        table, sentence = compare_measure(measure, parts)
        lines += table
        sentences.append(sentence)
    return [*lines, "", *sentences]


def compare_measure(measure: str, parts: list[tuple[str, list[tuple[float, float]]]]) -> tuple[list[str], str]:
    """Lines of the table for each benchmark's pairs and, of several, for their average.

    And the sentence about the last line.
    """
    rows = [(name, [pairs]) for name, pairs in parts]
    if len(parts) > 1:
        rows.append(("average", [pairs for _, pairs in parts]))
    unit, digits = ("strategies", 2) if measure == "strategies" else ("points", 1)
    lines = []
    for name, benchmarks in rows:
        a, b = (np.mean([np.mean([pair[side] for pair in pairs]) for pairs in benchmarks]) for side in (0, 1))
        differences, n = [[x - y for x, y in pairs] for pairs in benchmarks], sum(map(len, benchmarks))
        (centre, low, high), p = paired_bootstrap(differences), sign_flip_p(differences)
        interval = f"[{low:+.{digits}f}, {high:+.{digits}f}]"
        lines.append(f"{name + ' ' + measure:<34}{a:>8.{digits}f}{b:>8.{digits}f}{centre:>+8.{digits}f}   "
                     f"{interval:<16}{p:>7.3f}{n:>10}")
        sentence = f"{name}, {measure}: " + conclusion(centre, low, high, p, n, unit, digits)
    return lines, sentence


def expected_maximum(k: int) -> float:
    """Mean of the largest of k independent standard normal numbers: k times the integral of x phi(x) Phi(x)^(k-1)."""
    return quad(lambda x: k * x * norm.pdf(x) * norm.cdf(x) ** (k - 1), -9, 9)[0]


def gain_of_choosing(scores_KN: np.ndarray) -> float:
    """What the best of K equally good checkpoints gains by chance on N problems: the bootstrap mean of max_k (resampled
    mean - mean of k).

    How hard the drawn problems are is common to all K and adds 0 on average; what remains is the noise by which
    checkpoints differ.
    """
    rng, N = np.random.default_rng(0), scores_KN.shape[1]
    counts_RN = rng.multinomial(N, np.full(N, 1 / N), size=2000)
    return max(0.0, float((counts_RN @ (scores_KN - scores_KN.mean(1, keepdims=True)).T / N).max(1).mean()))


def curve(title: str, rows: list[tuple[str, float, float, str]], gain: float, bound: str) -> list[str]:
    """Checkpoints of one run, rows of (name, accuracy, standard error in 0..1, effective strategies), as lines for
    people."""
    best = max(rows, key=lambda row: row[1])
    lines = [f"\n{title}", f"{'step':>8}{'accuracy':>18}{'strategies':>20}"]
    lines += [f"{name:>8}{100 * accuracy:>10.1f} ± {100 * error:<5.1f}{strategies:>20}   " + "#" * round(50 * accuracy)
              for name, accuracy, error, strategies in rows]
    return [*lines, f"warning: the best is {'step ' * best[0].isdigit()}{best[0]} with {100 * best[1]:.1f}, but the "
                    f"best of {len(rows)} equally good checkpoints gains {bound}{100 * gain:.1f} points "
                    "by chance alone; report the last one, or choose on other problems than you report"]


CHECKPOINT = re.compile(r"(.*?)/(?:checkpoints/step-(\d+)/policy|(final))")


def curves_of_evaluations(evaluations: Sequence[Evaluation]) -> list[str]:
    """A curve for each benchmark on which several policies of one run were evaluated."""
    by_run: dict[str, list[tuple[float, str, Evaluation]]] = {}
    for evaluation in evaluations:
        if match := CHECKPOINT.fullmatch(normpath(evaluation.model)):
            by_run.setdefault(match[1], []).append((float(match[2] or "inf"), match[3] or str(int(match[2])),
                                                    evaluation))
    lines = []
    for run, found in by_run.items():
        found.sort(key=lambda item: item[0])
        for name in dict.fromkeys(name for *_, evaluation in found for name in evaluation.problems):
            mine = [(step, evaluation) for _, step, evaluation in found if name in evaluation.problems]
            if len(mine) < 2:
                continue
            for _, evaluation in mine[1:]:
                require_one_order(mine[0][1], evaluation, name)
            sides = [identified(evaluation.problems[name]) for _, evaluation in mine]
            common = [key for key in sides[0] if all(key in side for side in sides)]
            title = f"checkpoints of {run} on {name}"
            if not common:
                lines.append(f"\n{title}: they have no problem in common")
                continue
            if len(common) < max(map(len, sides)):
                title += f", the {len(common)} problems that all have"
            scores_KN = np.array([[np.mean([sample["correct"] for sample in side[key]]) for key in common]
                                  for side in sides])
            rows = [(step, row.mean(), standard_error(row.tolist()), strategies_of(evaluation.results[name]))
                    for (step, evaluation), row in zip(mine, scores_KN)]
            lines += curve(title, rows, gain_of_choosing(scores_KN), "")
    return lines


def curves_of_run(run: Run) -> list[str]:
    """A curve for each benchmark of a run's own evaluations."""
    if not run.evals:
        raise ValueError(f"{run.path} has no evaluations; compare needs some")
    lines = []
    for name in dict.fromkeys(record["benchmark"] for record in run.evals):
        rows = [(str(record["step"]), record["accuracy"], record["accuracy_se"], strategies_of(record))
                for record in run.evals if record["benchmark"] == name]
        lines += curve(f"{run.path} on {name}", rows, expected_maximum(len(rows)) * max(row[2] for row in rows),
                       "up to ")
    return lines


def compare(paths: Sequence[Path]) -> str:
    """Evaluations against the first of them, and checkpoints of one run as a curve."""
    runs, evaluations = read_any(paths)
    if len(evaluations) == 1 and not runs:
        raise ValueError(f"{paths[0]} alone: name another evaluation to compare it with")
    lines = []
    for other in evaluations[1:]:
        lines += [*compare_two(evaluations[0], other), ""]
    if len(evaluations) > 2:
        lines.append(f"note: {len(evaluations) - 1} comparisons, each with its own 95 %; of 20 comparisons of equal "
                     "models one is expected to exclude 0")
    if len(evaluations) > 1:
        lines.append("note: intervals are over problems and samples of these very models; whether one recipe beats "
                     "another takes several training seeds of each")
    lines += curves_of_evaluations(evaluations)
    for run in runs:
        lines += curves_of_run(run)
    return "\n".join(lines).strip("\n")
