"""Draws what runs answer to one question: a bar per policy, a piece of it per answer.

    python -m real_lm.picture benchmarks/real_lm_runs/*.metrics.jsonl --out benchmarks/real_lm_runs/asia.png

Read from the evaluations in metrics.jsonl files: the `strategies` of benchmark asia before training (once, if all runs
agree) and after it.
"""
import argparse
from collections import Counter
from pathlib import Path

from matplotlib.figure import Figure

from ranks import run_main
from report.page import method
from report.read import Run, read_run

BENCHMARK = "asia"
NAMED = 7                                               # answers with a color and a name; the others are grey
COLORS = ["#D55E00", "#0072B2", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#F0E442"]        # Okabe and Ito's
ROOM = 0.045                                            # of a bar's length: what a name in it needs, per five letters


def answers(record: dict) -> dict[str, float]:
    """Share of each right answer among all samples of an evaluation's record, the most frequent first."""
    total = record["n"] * record["samples"]
    return {label: count / total for label, count in Counter(record["strategies"]).most_common()}


def bars_of(runs: list[Run]) -> dict[str, dict[str, float]]:
    """{name of a policy: its `answers`}: before training, then each run after it, recipe by recipe; ValueError for runs
    without the benchmark, or that began differently."""
    bars, firsts = {}, []
    for run in sorted(runs, key=lambda run: (method(run.config).startswith("DRA"), method(run.config),
                                             run.config["run"]["seed"])):
        evaluations = [record for record in run.evals if record["benchmark"] == BENCHMARK]
        if len(evaluations) < 2:
            raise ValueError(f"{run.path} has no evaluations on {BENCHMARK!r} before and after training")
        firsts.append(answers(evaluations[0]))
        bars[f"{method(run.config)}, seed {run.config['run']['seed']}"] = answers(evaluations[-1])
    if len(bars) < len(runs):
        raise ValueError("two of the runs have the same method and seed; name one of them")
    if firsts.count(firsts[0]) < len(firsts):
        raise ValueError("the runs did not begin with the same policy, or were evaluated differently before training")
    return {"before training": firsts[0], **bars}


def figure(bars: dict[str, dict[str, float]], question: str) -> Figure:
    """Named answers in the order of their share over all bars, the others in grey with a line between each two, wrong
    ones left blank."""
    shares = sum((Counter(bar) for bar in bars.values()), Counter())
    colors = dict(zip([label for label, _ in shares.most_common(NAMED)], COLORS))
    drawn = Figure(figsize=(8.2, 0.42 * len(bars) + 0.9), layout="constrained")
    ax = drawn.subplots()
    for y, bar in enumerate(bars.values()):
        left = 0.0
        for label in [*(label for label in colors if label in bar), *(label for label in bar if label not in colors)]:
            ax.barh(y, bar[label], left=left, height=0.75, color=colors.get(label, "#C8C8C8"), edgecolor="white",
                    linewidth=0.6)
            if label in colors and bar[label] > ROOM * max(1, len(label) / 5):
                ax.text(left + bar[label] / 2, y, label.title(), ha="center", va="center", fontsize=8)
            left += bar[label]
        others = sum(label not in colors for label in bar)
        ax.text(1.01, y, f"{len(bar)} countries" if others else f"{len(bar)}", va="center", fontsize=8)
    ax.set_yticks(range(len(bars)), bars, fontsize=9)
    ax.invert_yaxis()
    ax.set_xlim(0, 1)
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    ax.tick_params(labelsize=8)
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_title(question, fontsize=10, loc="left")
    return drawn


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="METRICS", help="metrics.jsonl files of runs")
    parser.add_argument("--out", required=True, type=Path, help="PNG or SVG file")
    args = parser.parse_args(argv)
    figure(bars_of(list(map(read_run, args.runs))), '"Name a country in Asia."').savefig(args.out, dpi=150)
    print(args.out)
    return 0


if __name__ == "__main__":
    run_main(main)
