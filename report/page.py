"""Curves and completion groups of runs and evaluations as one HTML page without scripts or network (page.html).

Runs that differ in [run] alone are seeds of one recipe: a line is their mean, the band around it reaches from the
lowest seed to the highest. Recipes differ in line style and marker, not only in colour.
"""
import base64
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from jinja2 import Environment, FileSystemLoader
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from report.read import Evaluation, Run, read_groups
from reward import group_advantages

# S seeds of a recipe, K steps that all of them have

STYLES = [("#0072B2", "-", "o"), ("#D55E00", "--", "s"), ("#009E73", "-.", "^"), ("#CC79A7", ":", "D"),
          ("#000000", (0, (5, 1, 1, 1, 1, 1)), "v"),
          # Okabe and Ito's colours
          ("#E69F00", (0, (8, 3)), "P"), ("#56B4E9", (0, (3, 1, 1, 1)), "X"), ("#7F7F7F", (0, (1, 3)), "*")]
TEXT = {"font.size": 9, "axes.grid": True, "grid.alpha": 0.3, "axes.spines.top": False, "axes.spines.right": False}
LEARNING = {"modes": "effective strategies among right answers of a group", "accuracy": "accuracy",
            "reward": "raw reward"}
HEALTH = {"entropy": "entropy, nats per token", "length": "tokens of a completion",
          "truncated": "share cut at the limit",
          "kl": "KL to the reference, nats per token",
          "gap": "log-prob gap of sampler and learner", "zero_advantage": "share of groups without advantage",
          "similarity": "mean cosine in a group",
          "weight_length": "correlation of DRA's weight and length"}
FINE_PARTS = ["sample_s", "grade_s", "embed_s", "dra_s", "logprob_s", "forward_s", "backward_s", "optimizer_s"]
PARTS = ["sample_s", "reward_s", "update_s"]            # all that older records have


# ------------------------------------------------------------------------------------------------ curves


def unique_labels(labels: Sequence[str], paths: Sequence[Path]) -> list[str]:
    """Labels, with as much of the path as it takes after those that occur twice."""
    for place in (lambda path: path.name or path, lambda path: path):
        labels = [f"{label} ({place(path)})" if labels.count(label) > 1 else label
                  for label, path in zip(labels, paths)]
    return labels


def by_recipe(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """{label: seeds}; a run without a step yet is no seed, unless its recipe has no other."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(run.recipe, []).append(run)
    recipes = [[run for run in seeds if run.train] or seeds for seeds in found.values()]
    labels = [method(seeds[0].config) for seeds in recipes]
    if len(recipes) < 2 or len(set(labels)) < len(recipes):
        labels = unique_labels([seeds[0].label for seeds in recipes], [seeds[0].path for seeds in recipes])
    return dict(zip(labels, recipes))


def method(config: dict) -> str:
    """What a reader calls a recipe that differs from the others in loss or in DRA, such as "DRA-Dr. GRPO"; with
    ", shared" for `dra.apply = "advantage"`."""
    loss, dra = config.get("learner", {}).get("loss", ""), config.get("dra", {})
    name = {"grpo": "GRPO", "dr_grpo": "Dr. GRPO", "dapo": "DAPO"}.get(loss, loss)
    if not dra.get("enabled"):
        return name
    return f"DRA-{name}" + ", shared" * (dra.get("apply") == "advantage")


def style(i: int) -> dict:
    """Of the i-th curve: no two of the first 64 have the same line and marker."""
    color, line, _ = STYLES[i % len(STYLES)]
    return {"color": color, "linestyle": line, "marker": STYLES[(i + i // len(STYLES)) % len(STYLES)][2],
            "markersize": 4, "linewidth": 1.4}


def values_of(seeds: Sequence[Run], key: str) -> tuple[np.ndarray, np.ndarray]:
    """(steps (K,), values (S, K)) of a key of the train records at the steps that all seeds have; nan where a record
    has none."""
    tables = [{record["step"]: record.get(key) for record in run.train} for run in seeds]
    steps = sorted(set.intersection(*map(set, tables)))
    for run, table in zip(seeds, tables):
        if wrong := [value for value in table.values() if not isinstance(value, int | float | None)]:
            raise ValueError(f"{run.path}: {key!r} of a train record is {str(wrong[0])[:60]!r}, not a number")
    return np.array(steps), np.array(
        [[np.nan if table[step] is None else table[step] for step in steps] for table in tables], float)


def smooth(values_SK: np.ndarray, window: int) -> np.ndarray:
    """Centred running mean over `window` steps, fewer at the ends; nan counts nowhere, and remains where there is
    nothing else."""
    if not values_SK.size:
        return values_SK
    known, ones = ~np.isnan(values_SK), np.ones(window)
    sums, counts = (np.array([np.convolve(row, ones)[(window - 1) // 2 :][: len(row)] for row in rows])
                    for rows in (np.where(known, values_SK, 0.0), known.astype(float)))
    return np.where(counts > 0.5, sums / np.maximum(counts, 1), np.nan)


def plain(label: str) -> str:
    """A label as matplotlib shall print it: of bearable length, no formula, and not left out of the legend because of
    an underscore in front."""
    label = (label if len(label) <= 56 else f"{label[:20]} … {label[-32:]}").encode(errors="replace").decode()
    return (f" {label}" if label.startswith("_") else label).replace("$", "\\$")


def lines(ax: Axes, curves: Sequence[tuple[np.ndarray, np.ndarray]], title: str) -> None:
    """(x, values (S, K)) of each recipe: mean of the seeds and the band they span."""
    for i, (x_K, values_SK) in enumerate(curves):
        known_K = ~np.isnan(values_SK).any(0) if values_SK.size else np.zeros(0, bool)
        x_K, values_SK = x_K[known_K], values_SK[:, known_K]
        every = max(1, len(x_K) // 8)
        ax.plot(x_K, values_SK.mean(0), **style(i), markevery=(i * every // max(len(curves), 1), every))
        if len(values_SK) > 1:
            ax.fill_between(x_K, values_SK.min(0), values_SK.max(0), color=style(i)["color"], alpha=0.2, linewidth=0)
    ax.set_title(plain(title), fontsize=9)


def name_lines(ax: Axes, curves: Sequence[tuple[np.ndarray, np.ndarray]], labels: Sequence[str]) -> None:
    """Writes each recipe's name at the right end of its line, as far apart as the letters are high."""
    ends = sorted((values_SK[:, -1].mean(), i) for i, (_, values_SK) in enumerate(curves)
                  if values_SK.size and not np.isnan(values_SK[:, -1]).any())
    low, high = ax.get_ylim()
    places: list[float] = []
    for value, _ in ends:
        places.append(max((value - low) / (high - low), places[-1] + 0.075 if places else 0))
    down = np.mean([place - (value - low) / (high - low) for place, (value, _) in zip(places, ends)]) if ends else 0
    for place, (_, i) in zip(places, ends):
        ax.annotate(plain(labels[i]), (1.01, place - down), xycoords="axes fraction", va="center", fontsize=8,
                    color=style(i)["color"])


def grid(titles: Sequence[str], labels: Sequence[str], draw: Callable[[Axes, int], None], xlabel: str) -> Figure:
    """A figure with a panel for each title, drawn by `draw(axes, number)`, and a legend of all recipes above."""
    columns = min(2, len(titles))
    rows = -(-len(titles) // columns)
    legend_rows = -(-len(labels) // columns) if labels else 0
    height = 2.3 * rows + 0.19 * legend_rows + 0.3
    figure = Figure(figsize=(4.6 * columns, height), layout="constrained")
    figure.get_layout_engine().set(rect=(0, 0, 1, 1 - (0.19 * legend_rows + 0.1) / height))
    for i, ax in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        if i < len(titles):
            draw(ax, i)
            ax.set_xlabel(xlabel, fontsize=8)
            if xlabel == "step":
                ax.xaxis.get_major_locator().set_params(integer=True)
        else:
            ax.set_axis_off()
    if labels:
        handles = [figure.axes[0].plot([], [], **style(i))[0] for i in range(len(labels))]
        figure.legend(handles, [plain(label) for label in labels], loc="upper center", ncols=columns, fontsize=8,
                      frameon=False, handlelength=4.5)
    return figure


def training_figure(recipes: dict[str, list[Run]], panels: dict[str, str], window: int) -> tuple[Figure | None, str]:
    """(figure, titles of what is 0 in all runs and not drawn).

    Keys of the train records over steps; those that no run has are left out.
    """
    curves = {key: [values_of(seeds, key) for seeds in recipes.values()] for key in panels}
    known = [key for key in panels if any(np.isfinite(values).any() for _, values in curves[key])]
    shown = [key for key in known if any(np.nan_to_num(values).any() for _, values in curves[key])]
    if {"accuracy", "reward"} <= set(shown) and all(
            np.array_equal(one, other) for (_, one), (_, other) in zip(curves["accuracy"], curves["reward"])):
        shown.remove("reward")                          # the same curve twice
    if not shown:
        return None, ""
    named = panels is LEARNING and 1 < len(recipes) <= 5       # at the lines, in place of a legend

    def draw(ax: Axes, i: int) -> None:
        smoothed = [(steps, smooth(values, window)) for steps, values in curves[shown[i]]]
        lines(ax, smoothed, panels[shown[i]])
        if named:
            name_lines(ax, smoothed, list(recipes))

    flat = ", ".join(panels[key] for key in known if key not in shown)
    return grid([panels[key] for key in shown], [] if named else list(recipes), draw, "step"), flat


def time_figure(recipes: dict[str, list[Run]], window: int) -> Figure | None:
    """Seconds of a step by part, a panel for each recipe: mean over seeds."""
    timed = {label: seeds for label, seeds in recipes.items() if any("sample_s" in record for record in seeds[0].train)}
    if not timed:
        return None
    parts = FINE_PARTS if all(np.isfinite(values_of(seeds, part)[1]).any() for seeds in timed.values()
                              for part in FINE_PARTS) else PARTS

    def draw(ax: Axes, i: int) -> None:
        label, seeds = list(timed.items())[i]
        lines(ax, [(steps, smooth(values.mean(0, keepdims=True), window))
                   for steps, values in (values_of(seeds, part) for part in parts)], label)
        if any(line.get_ydata().size for line in ax.lines):             # nothing has no logarithm
            ax.set_yscale("log")
            ax.yaxis.set_major_formatter("{x:g}")
            ax.yaxis.set_minor_formatter("")
        ax.set_ylabel("seconds", fontsize=8)

    return grid(list(timed), [part.removesuffix("_s") for part in parts], draw, "step")


def eval_curves(recipes: dict[str, list[Run]], benchmark: str, key: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """(steps (K,), values (S, K)) of the recipes' evaluations on one benchmark."""
    found = []
    for seeds in recipes.values():
        tables = [{record["step"]: record.get(key) for record in run.evals if record["benchmark"] == benchmark}
                  for run in seeds]
        steps = sorted(set.intersection(*map(set, tables)))
        found.append((np.array(steps), np.array(
            [[np.nan if table[step] is None else table[step] for step in steps] for table in tables], float)))
    return found


def evaluation_figure(recipes: dict[str, list[Run]]) -> Figure | None:
    """Accuracy and effective strategies of the evaluations during training."""
    benchmarks = list(
        dict.fromkeys(record["benchmark"] for seeds in recipes.values() for run in seeds for record in run.evals))
    panels = [(benchmark, key, title) for benchmark in benchmarks
              for key, title in (("accuracy", "accuracy"), ("effective_strategies", "effective strategies"))]
    curves = {panel: eval_curves(recipes, *panel[:2]) for panel in panels}
    shown = [panel for panel in panels if any(np.isfinite(values).any() for _, values in curves[panel])]
    if not shown:
        return None
    titles = [f"{benchmark}: {title}" for benchmark, _, title in shown]
    return grid(titles, list(recipes), lambda ax, i: lines(ax, curves[shown[i]], titles[i]), "step")


def pass_figure(recipes: dict[str, list[Run]], evaluations: Sequence[Evaluation]) -> Figure | None:
    """pass@k of the evaluations given, and of the first and last ones that all seeds of a recipe have (a first one that
    another recipe shares is drawn once)."""
    found = [(label, [evaluation.results]) for label, evaluation in zip(labels_of(evaluations), evaluations)]
    firsts = []
    for label, seeds in recipes.items():
        steps = sorted(set.intersection(*({record["step"] for record in run.evals} for run in seeds)))
        for step in dict.fromkeys([*steps[:1], *steps[-1:]]):
            results = [{record["benchmark"]: record for record in run.evals if record["step"] == step} for run in seeds]
            curves = [{name: record["pass_at_k"] for name, record in of_seed.items()} for of_seed in results]
            if step == steps[0] and curves.count(curves[0]) == len(curves):
                if curves[0] in firsts:
                    continue
                firsts.append(curves[0])
            found.append((f"{label}, step {step}", results))
    benchmarks = list(dict.fromkeys(name for _, results in found for of_seed in results for name in of_seed))
    if not benchmarks:
        return None

    def draw(ax: Axes, i: int) -> None:
        curves = []
        for _, results in found:
            tables = [{int(k): value for k, value in of_seed.get(benchmarks[i], {"pass_at_k": {}})["pass_at_k"].items()}
                      for of_seed in results]
            ks = sorted(set.intersection(*map(set, tables)))
            curves.append((np.array(ks, float), np.array([[table[k] for k in ks] for table in tables], float)))
        lines(ax, curves, f"{benchmarks[i]}: pass@k")
        if any(ks.size for ks, _ in curves):
            ax.set_xscale("log", base=2)
            ax.xaxis.set_major_formatter("{x:g}")

    return grid(benchmarks, [label for label, _ in found], draw, "k")


def labels_of(evaluations: Sequence[Evaluation]) -> list[str]:
    models, paths = [evaluation.model for evaluation in evaluations], [evaluation.path for evaluation in evaluations]
    return unique_labels(models, paths)


# ------------------------------------------------------------------------------------------------ completion groups


def plain_advantages(group: dict, config: dict) -> list[float]:
    """What the advantages of a group would have been without DRA, from its raw rewards and the run's settings."""
    kind = config.get("reward", {}).get("advantage", "auto")
    scale = ("none" if config.get("learner", {}).get("loss") == "dr_grpo" else "std") if kind == "auto" else kind
    return group_advantages(torch.tensor([completion["reward"] for completion in group["completions"]],
                                         dtype=torch.float64), scale).tolist()


def most_changed_groups(run: Run, most: int) -> list[tuple[int, int]]:
    """(step, position) of the group of a step in which DRA moved the advantages most, for at most `most` steps evenly
    spaced over the run.

    In turn of groups with different raw rewards, and of those with equal ones, where the advantages would be 0 without
    DRA; the other kind if a step has none.
    """
    best: dict[int, dict[bool, tuple[float, int]]] = {}
    for group in read_groups(run.samples):
        if "step" in group and len(group["completions"]) > 1:
            moved = sum(abs(completion["advantage"] - value)
                        for completion, value in zip(group["completions"], plain_advantages(group, run.config)))
            kinds = best.setdefault(group["step"], {})
            equal = len({completion["reward"] for completion in group["completions"]}) == 1
            kinds[equal] = max(kinds.get(equal, (-1.0, 0)), (moved, -group["position"]))
    steps = sorted(best)
    chosen = dict.fromkeys(np.linspace(0, len(steps) - 1, min(most, len(steps))).round().astype(int).tolist())
    return [(steps[i], -best[steps[i]].get(turn % 2 == 1, next(iter(best[steps[i]].values())))[1])
            for turn, i in enumerate(chosen)]


def bar(value: float, largest: float) -> dict:
    """A number and its bar from the middle, to the left if it is negative; left and width in percent."""
    share = 50 * min(abs(value) / largest, 1) if largest else 0
    left = "50" if value >= 0 else f"{50 - share:.1f}"
    return {"text": f"{value:+.3f}", "kind": "up" if value >= 0 else "down", "left": left, "width": f"{share:.1f}"}


def group_rows(run: Run, group: dict) -> list[dict]:
    """The completions of a group as page.html shows them; right ones first, and those DRA prefers before the others."""
    pairs = sorted(zip(group["completions"], plain_advantages(group, run.config)),
                   key=lambda pair: (-pair[0]["correct"], -pair[0]["weight"]))
    largest = max(max(abs(completion["advantage"]), abs(plain)) for completion, plain in pairs)
    return [{"correct": completion["correct"], "strategy": completion.get("label"), "text": completion["text"],
             "reward": f"{completion['reward']:.3f}", "smi": f"{completion['smi']:.3f}",
             "weight": f"{completion['weight']:.4f}", "adjusted": f"{completion['adjusted']:.4f}",
             "plain": bar(plain, largest), "advantage": bar(completion["advantage"], largest)}
            for completion, plain in pairs]


def side_by_side(runs: Sequence[Run], most: int) -> list[dict]:
    """{step, problem, tables} of the same prompts in all runs with samples, chosen by the first that used DRA."""
    runs = [run for run in runs if run.samples]
    if not runs or not most:
        return []
    chooser = next((run for run in runs if run.config.get("dra", {}).get("enabled")), runs[0])
    keys = most_changed_groups(chooser, most)
    found = [{(group["step"], group["position"]): group for group in read_groups(run.samples)
              if (group.get("step"), group.get("position")) in keys} for run in runs]
    prompts = []
    for key in keys:
        first = found[runs.index(chooser)][key]
        tables = [{"label": f"{run.label} ({run.path.name})", "rows": group_rows(run, groups[key])}
                  for run, groups in zip(runs, found)
                  if key in groups and groups[key].get("id") == first.get("id")]
        prompts.append({"step": key[0], "problem": str(first.get("problem", first.get("id")))[:500], "tables": tables})
    return prompts


# ------------------------------------------------------------------------------------------------ the page


def figures_of(recipes: dict[str, list[Run]], evaluations: Sequence[Evaluation], window: int) -> dict[str, tuple]:
    """{name: (figure or None, caption)}; curves of training are running means over `window` steps."""
    mean = f"Running mean over {window} steps." if window > 1 else ""
    seeds = "Line: mean of the seeds; band: lowest to highest."
    about = seeds if any(len(runs) > 1 for runs in recipes.values()) else "One seed each."
    figures = {}
    for name, panels in (("learning", LEARNING), ("health", HEALTH)):
        figure, zeros = training_figure(recipes, panels, window)
        zeros = f"0 in all runs and not drawn: {zeros}." if zeros else ""
        figures[name] = figure, " ".join(filter(None, ["During training.", mean, about, zeros]))
    figures["time"] = time_figure(recipes, window), f"Seconds of a step by part, mean of the seeds. {mean}".strip()
    figures["evaluation"] = evaluation_figure(recipes), f"Evaluations of the runs. {seeds}"
    figures["pass_at_k"] = pass_figure(recipes, evaluations), "Unbiased pass@k, mean over problems."
    return figures


def overview(runs: Sequence[Run], recipes: dict[str, list[Run]],
             evaluations: Sequence[Evaluation]) -> list[tuple[str, str, str]]:
    """(label, path, what it holds) of all that was read."""
    rows = []
    for label, seeds in recipes.items():
        steps = sorted({max((record["step"] for record in run.train), default=0) for run in seeds})
        longest = f" (curves end there; the longest has {steps[-1]})" if len(steps) > 1 else ""
        rows.append((label, ", ".join(str(run.path) for run in seeds),
                     f"{len(seeds)} seed{'s' * (len(seeds) > 1)}, {steps[0]} steps{longest}"))
    rows += [(run.label, str(run.path), "no step yet; left out") for run in runs
             if not any(run in seeds for seeds in recipes.values())]
    for label, evaluation in zip(labels_of(evaluations), evaluations):
        figures = [f"{name} {100 * record['accuracy']:.1f} ± {100 * record['accuracy_se']:.1f} "
                   f"(avg@{record['samples']})" for name, record in evaluation.results.items()]
        rows.append((label, str(evaluation.path), "; ".join(figures)))
    return rows


def template():
    folder = Path(__file__).parent
    return Environment(loader=FileSystemLoader(folder), autoescape=True, trim_blocks=True).get_template("page.html")


def write_page(runs: Sequence[Run], evaluations: Sequence[Evaluation], out: Path, groups: int) -> list[Path]:
    """index.html and its PNGs in `out`; returns what was written."""
    if groups < 0:
        raise ValueError(f"--groups must be >= 0; got {groups}")
    out.mkdir(parents=True, exist_ok=True)
    recipes = by_recipe(runs)
    images, written = [], []
    with rc_context(TEXT):
        figures = figures_of(recipes, evaluations, window=max([1, *(len(run.train) // 20 for run in runs)]))
        for name, (figure, caption) in figures.items():
            if figure is not None:
                written.append(out / f"{name}.png")
                figure.savefig(written[-1], dpi=110)
                data = base64.b64encode(written[-1].read_bytes()).decode()
                images.append({"name": name, "data": data, "caption": caption})
    page = template().render(overview=overview(runs, recipes, evaluations), images=images,
                             prompts=side_by_side(runs, groups))
    (out / "index.html").write_text(page, encoding="utf-8", errors="replace")
    return [out / "index.html", *written]
