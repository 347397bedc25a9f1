"""What runs on the open questions came to: tables of evaluations and steps, and a picture of answers to one of them.

    python -m real_lm.results benchmarks/real_lm_runs/{grpo,dra_grpo,advantage}-*.metrics.jsonl \\
        --picture benchmarks/real_lm_runs/asia.png

All of it is read from metrics.jsonl files. Runs that differ in [run] alone are seeds of one row, in whose cells each
has a figure. The picture shows the `strategies` of benchmark asia.
"""
import argparse
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from textwrap import fill

from matplotlib.figure import Figure
from matplotlib.patches import Patch

from metrics import mean
from ranks import run_main
from report.page import method
from report.read import Run, read_run
from reward import DraConfig

# heading: (of an evaluation's record, digits)
COLUMNS = {"accuracy": (lambda record: record["accuracy"], 3),
           "effective items": (lambda record: record["effective_strategies"], 2),
           "different items": (lambda record: record["distinct_strategies"], 1),
           "pass@8": (lambda record: record["pass_at_k"].get("8"), 3),
           "cut": (lambda record: record["truncated"], 3)}
# heading: (key of a train record, digits)
COURSE = {"reward": ("reward", 2), "effective items of a group": ("modes", 2), "cosine": ("similarity", 2),
          "tokens": ("length", 1), "cut": ("truncated", 2), "entropy": ("entropy", 2),
          "groups without advantage": ("zero_advantage", 2)}
BENCHMARK = "asia"
NAMED = 7                                               # answers with a color and a name; the others are grey
GREY = "#C8C8C8"
COLORS = ["#D55E00", "#0072B2", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#F0E442"]        # Okabe and Ito's
ROOM = 0.052                                            # of a bar's length: what a name in it needs, per five letters


def evaluations(run: Run, benchmark: str) -> tuple[dict, dict]:
    """The records before and after training; ValueError if there are not both."""
    records = [record for record in run.evals if record["benchmark"] == benchmark]
    if len({record["step"] for record in records}) < 2:
        raise ValueError(f"{run.path} has no evaluations on {benchmark!r} before and after training")
    return records[0], records[-1]


def rule_of(run: Run) -> str:
    return ", loose reward" if run.config["reward"]["correct"].endswith("_among") else ""


def name_of(run: Run) -> str:
    """The method, the reward, and other options of DRA that are not the default ones."""
    dra, usual = run.config["dra"], asdict(DraConfig())
    changed = [f", dra.{key} = {dra[key]:g}" if isinstance(dra[key], float) else f", dra.{key} = {dra[key]}"
               for key in usual if dra["enabled"] and key not in ("enabled", "apply", "embedder")
               and dra.get(key, usual[key]) != usual[key]]
    return method(run.config) + rule_of(run) + "".join(changed)


def in_order(runs: list[Run]) -> list[Run]:
    """Baselines first, seeds in order; ValueError for two runs with one name and seed."""
    keys = [(name_of(run).startswith("DRA"), name_of(run), run.config["run"]["seed"]) for run in runs]
    if len(set(keys)) < len(runs):
        raise ValueError("two of the runs have the same method and seed; name one of them")
    return [run for _, run in sorted(zip(keys, runs), key=lambda pair: pair[0])]


def table(runs: list[Run]) -> str:
    """A Markdown table for each benchmark that the first run has: a row before training and one for each recipe after
    it, with the figure of each seed."""
    runs, tables = in_order(runs), []
    for benchmark in dict.fromkeys(record["benchmark"] for record in runs[0].evals):
        rows: dict[str, list[dict]] = {}
        for run in runs:
            before, after = evaluations(run, benchmark)
            rows.setdefault(f"before{rule_of(run)}", [before])          # same policy and random numbers in all
            rows.setdefault(name_of(run), []).append(after)
        tables.append("\n".join([
            f"| {benchmark} | " + " | ".join(COLUMNS) + " |", "|---" * (1 + len(COLUMNS)) + "|",
            *(f"| {name} | " + " | ".join(
                ", ".join("-" if value(record) is None else f"{value(record):.{digits}f}" for record in records)
                for value, digits in COLUMNS.values()) + " |" for name, records in rows.items())]))
    return "\n\n".join(tables)


def course(runs: list[Run]) -> str:
    """A Markdown table of the training: means over seeds, over the first and the last quarter of the steps."""
    rows: dict[str, list[Run]] = {}
    for run in in_order(runs):
        rows.setdefault(name_of(run), []).append(run)
    lines = [f"| first -> last quarter of the steps | {' | '.join(COURSE)} |", "|---" * (1 + len(COURSE)) + "|"]
    for name, seeds in rows.items():
        quarters = [[record for run in seeds for record in part(run.train)] for part in (
            lambda train: train[: len(train) // 4], lambda train: train[-(len(train) // 4):])]
        means = [[mean(record[key] for record in quarter) for quarter in quarters] for key, _ in COURSE.values()]
        cells = ["-" if first is None else f"{first:.{digits}f} -> {last:.{digits}f}"
                 for (first, last), (_, digits) in zip(means, COURSE.values())]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def answers(record: dict) -> dict[str, float]:
    """Share of each right answer among all samples of an evaluation's record, the most frequent first."""
    total = record["n"] * record["samples"]
    return {label: count / total for label, count in Counter(record["strategies"]).most_common()}


def bars_of(runs: list[Run]) -> dict[str, dict[str, float]]:
    """{name of a policy: its `answers`}: before training, then each run after it; ValueError if the runs began
    differently."""
    runs = in_order(runs)
    pairs = [evaluations(run, BENCHMARK) for run in runs]
    firsts = [answers(before) for before, _ in pairs]
    if firsts.count(firsts[0]) < len(firsts):
        raise ValueError("the runs did not begin with the same policy, or were evaluated differently before training")
    return {"before training": firsts[0], **{
        f"{name_of(run)}, seed {run.config['run']['seed']}": answers(after) for run, (_, after) in zip(runs, pairs)}}


def figure(bars: dict[str, dict[str, float]], question: str) -> Figure:
    """A bar per policy, a piece of it per answer: those most frequent over all bars with color and name, the others in
    grey, wrong ones left blank; at its end the number of different right answers."""
    shares = sum((Counter(bar) for bar in bars.values()), Counter())
    colors = dict(zip([label for label, _ in shares.most_common(NAMED)], COLORS))
    drawn = Figure(figsize=(8.2, 0.42 * len(bars) + 1.1), layout="constrained")
    ax = drawn.subplots()
    for y, bar in enumerate(bars.values()):
        left = 0.0
        for label in [*(label for label in colors if label in bar), *(label for label in bar if label not in colors)]:
            ax.barh(y, bar[label], left=left, height=0.75, color=colors.get(label, GREY), edgecolor="white",
                    linewidth=0.6)
            if label in colors and bar[label] > ROOM * max(1, len(label) / 5):
                ax.text(left + bar[label] / 2, y, label.title(), ha="center", va="center", fontsize=8)
            left += bar[label]
        ax.text(1.01, y, f"{len(bar)} different", va="center", fontsize=8)
    ax.set_yticks(range(len(bars)), [fill(name, 32) for name in bars], fontsize=9)
    ax.invert_yaxis()
    ax.set_xlim(0, 1)
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    ax.tick_params(labelsize=8)
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_title(question, fontsize=10, loc="left")
    keys = [*((color, label.title()) for label, color in colors.items()), (GREY, "other right answers"),
            ("white", "wrong")]
    drawn.legend([Patch(facecolor=color, edgecolor=GREY) for color, _ in keys], [name for _, name in keys],
                 loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    return drawn


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="METRICS", help="metrics.jsonl files of runs")
    parser.add_argument("--picture", type=Path, help="PNG or SVG file to draw")
    args = parser.parse_args(argv)
    runs = list(map(read_run, args.runs))
    print(f"{table(runs)}\n\n{course(runs)}")
    if args.picture:
        figure(bars_of(runs), "Answers to “Name a country in Asia.”").savefig(args.picture, dpi=150)
    return 0


if __name__ == "__main__":
    run_main(main)
