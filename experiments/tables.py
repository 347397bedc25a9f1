"""Tables and figures from the records of runs: nothing is trained here.

A method is compared with GRPO by its differences from the GRPO run of the same seed, in the same setting; intervals are
Student's over seeds, 95 %, and there is none for a single seed.
"""
import re
from collections.abc import Callable, Iterable, Sequence
from math import sqrt
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure
from scipy.stats import t

import files
from metrics import deviation, mean
from report.page import STYLES, TEXT

BASELINE = "grpo"
ENOUGH = 5                                              # seeds for a verdict
NAMES = {"grpo": "plain", "dra": "DRA, published", "advantage": "shared advantages",
         "advantage_bonus": "shared, bonus 1", "dra_sharp": "DRA, cosine^8", "advantage_bonus02": "shared, bonus 0.2",
         "advantage_bonus05": "shared, bonus 0.5", "advantage_bonus20": "shared, bonus 2",
         "bonus_alone": "bonus 1, not shared", "zero_sum": "shared, bonus of sum 0", "ucpo": "UCPO",
         "additive": "additive (G2RPO)", "setpo": "SetPO", "passk": "pass@4 training", "unlikeliness": "unlikeliness",
         "darling": "DARLING-like", "mmr": "MMR-GRPO", "kl": "KL 0.05", "two_updates": "two updates",
         "clip_higher": "two updates, clip-higher", "oracle_reward": "DRA, true kernel",
         "oracle_advantage": "shared, bonus 1, true kernel", "shuffled_reward": "DRA, shuffled weights",
         "shuffled_advantage": "shared, bonus 1, shuffled weights", "wrong_pairs": "DRA, wrong pairs",
         "log_det": "DRA, log-det", "scope_correct": "DRA, right ones only", "policy": "DRA, policy's hidden states",
         "policy_advantage_bonus": "shared, bonus 1, policy's hidden states",
         "normalize": "DRA, weights of mean 1"}


class Result:
    """What a record file holds: the lines of one run, and figures of them."""

    def __init__(self, lines: Sequence[dict]):
        self.about, self.before, self.after, self.train = lines
        self.setting, self.arm, self.seed = (self.about[key] for key in ("setting", "arm", "seed"))

    accuracy = property(lambda self: self.after["accuracy"])
    strategies = property(lambda self: self.after["effective_strategies"])

    @property
    def kept(self) -> float | None:
        """Effective strategies per prompt after training, as a share of those before; None if no problem has enough
        right answers to count them."""
        before, after = self.before["effective_strategies"], self.strategies
        return None if None in (before, after) else after / before


def read_records(folder: Path) -> list[Result]:
    """All records of a folder; ValueError naming the file that is none."""
    results = []
    for path in sorted(folder.glob("*.jsonl")):
        lines = [line for _, line in files.read_jsonl(path)]
        if [line.get("kind") for line in lines] != ["run", "eval", "eval", "train"]:
            raise ValueError(f"{path} is not the record of a run; remove it, and the run is made again")
        results.append(Result(lines))
    return results


def by_arm(results: Iterable[Result], setting: str, order: Sequence[str]) -> dict[str, dict[int, Result]]:
    """{arm: {seed: result}} of a setting, arms in the plan's order, those without a run left out."""
    found: dict[str, dict[int, Result]] = {arm: {} for arm in order}
    for result in results:
        if result.setting == setting and result.arm in found:
            found[result.arm][result.seed] = result
    return {arm: seeds for arm, seeds in found.items() if seeds}


# ------------------------------------------------------------------------------------------------ statistics


def interval(values: Sequence[float], level: float = 0.95) -> float | None:
    """Half the width of Student's interval for the mean of independent values; None for less than two."""
    if len(values) < 2:
        return None
    return float(t.ppf((1 + level) / 2, len(values) - 1)) * deviation(values) / sqrt(len(values))


def paired(one: dict[int, Result], other: dict[int, Result], figure: Callable[[Result], float]) -> list[float]:
    """Differences one - other of the seeds that both have."""
    return [figure(one[seed]) - figure(other[seed]) for seed in sorted(one.keys() & other.keys())]


def shares_and_skills(record: dict) -> tuple[dict[str, float], dict[str, float]]:
    """Of an evaluation's record: each label's share of all samples, and how often its samples are right."""
    total = sum(record["labels"].values())
    return ({label: count / total for label, count in record["labels"].items()},
            {label: record["strategies"].get(label, 0) / count for label, count in record["labels"].items()})


def decompose(before: dict, after: dict) -> tuple[float, float]:
    """(selection, skill): the change of accuracy from one evaluation's record to another, in two parts that add up.

    Accuracy is sum_k share_k skill_k. Selection is sum_k (change of share_k) x mean skill_k, skill is sum_k mean
    share_k x (change of skill_k), means of before and after. A label that one of them never shows has the other's
    skill.
    """
    (share_0, skill_0), (share_1, skill_1) = shares_and_skills(before), shares_and_skills(after)
    selection = skill = 0.0
    for label in share_0.keys() | share_1.keys():
        p, q = share_0.get(label, 0.0), share_1.get(label, 0.0)
        a = skill_0.get(label, skill_1.get(label))
        b = skill_1.get(label, skill_0.get(label))
        selection += (q - p) * (a + b) / 2
        skill += (b - a) * (p + q) / 2
    return selection, skill


# ------------------------------------------------------------------------------------------------ tables


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def name_of(arm: str) -> str:
    return NAMES.get(arm, arm)


def average(values: Iterable[float | None], form: str) -> str:
    """The mean of the values that there are, in the format `form`."""
    value = mean(values)
    return "-" if value is None else format(value, form)


def spread(values: Iterable[float | None], form: str) -> str:
    """The same, with the standard deviation over seeds in brackets if there are several."""
    values = [value for value in values if value is not None]
    return average(values, form) + (f" ({deviation(values):{form}})" if len(values) > 1 else "")


def difference(values: Sequence[float]) -> str:
    """Mean of paired differences in points with the half-width of its interval."""
    half = interval(values)
    return average(values, "+.2f") + ("" if half is None else f" ± {half:.2f}")


def reaches_goal(arm: dict[int, Result], baseline: dict[int, Result]) -> str:
    """The goal: lower end of the paired interval above -0.5 points, and at least 90 % of the strategies kept; "?" for
    less than ENOUGH seeds, whose spread is as uncertain as their mean."""
    values, kept = paired(arm, baseline, points), mean(result.kept for result in arm.values())
    if len(values) < ENOUGH or kept is None:
        return "?"
    return "yes" if mean(values) - interval(values) > -0.5 and kept >= 0.9 else "no"


def points(result: Result) -> float:
    return 100 * result.accuracy


def outcome(arms: dict[str, dict[int, Result]]) -> str:
    """The main table of a setting."""
    baseline, rows = arms.get(BASELINE, {}), []
    shared = set.intersection(*(set(r.after["pass_at_k"]) for seeds in arms.values() for r in seeds.values()))
    ks = [k for k in ("8", "32") if k in shared]
    for arm, seeds in arms.items():
        found = list(seeds.values())
        rows.append([
            name_of(arm), str(len(found)), spread((r.accuracy for r in found), ".3f"),
            "-" if arm == BASELINE else difference(paired(seeds, baseline, points)),
            spread((r.strategies for r in found), ".2f"), average((r.kept for r in found), ".0%"),
            average((r.after["effective_strategies_pooled"] for r in found), ".2f"),
            *(average((r.after["pass_at_k"][k] for r in found), ".3f") for k in ks),
            average((r.train["entropy"] for r in found), ".3f"),
            "-" if arm == BASELINE else reaches_goal(seeds, baseline)])
    return table(["method", "seeds", "accuracy", "against plain, points", "strategies", "kept", "pooled",
                  *(f"pass@{k}" for k in ks), "entropy", "goal"], rows)


def why(arms: dict[str, dict[int, Result]]) -> str:
    """Selection and skill, and where the advantages went."""
    rows, baseline = [], arms.get(BASELINE, {})
    for arm, seeds in arms.items():
        found = list(seeds.values())
        gained = [decompose(r.before, r.after) for r in found]
        common = sorted(seeds.keys() & baseline.keys()) if arm != BASELINE else []
        against = [decompose(baseline[seed].after, seeds[seed].after) for seed in common]
        rows.append([
            name_of(arm), *(f"{100 * mean(part):+.1f}" for part in zip(*gained)),
            *([f"{100 * mean(part):+.2f}" for part in zip(*against)] or ["-", "-"]),
            *(average((r.train[key] for r in found), ".0%") for key in
              ("groups_all_right", "right_pushed_down", "abs_right_down", "abs_all_right"))])
    return table(["method", "gain by selection", "by skill", "against plain by selection", "by skill",
                  "groups all right", "right answers with A < 0", "of \\|A\\|: right pushed down",
                  "in all-right groups"], rows)


def mixes(arms: dict[str, dict[int, Result]]) -> str:
    """Share / accuracy of each strategy, before and after."""
    first = next(iter(next(iter(arms.values())).values()))
    labels = list(first.before["labels"])

    def cells(records: Sequence[dict]) -> list[str]:
        pairs = [shares_and_skills(record) for record in records]
        return [average((share.get(label, 0.0) for share, _ in pairs), ".3f") + " / "
                + average((skill.get(label) for _, skill in pairs), ".3f") for label in labels]

    rows = [["before", *cells([first.before])]]
    rows += [[name_of(arm), *cells([result.after for result in seeds.values()])] for arm, seeds in arms.items()]
    return table(["share / accuracy", *(label.replace("None", "none of these") for label in labels)], rows)


def tables(results: Sequence[Result], plan: dict) -> dict[str, str]:
    """{name: Markdown} of all settings that have runs."""
    found = {}
    for setting, about in plan["settings"].items():
        if arms := by_arm(results, setting, about["arms"]):
            found |= {f"{setting} {part.__name__}": part(arms) for part in (outcome, why, mixes)}
    return found


MARK = re.compile(r"(<!-- table: (.+?) -->\n)(.*?)(<!-- end -->)", re.S)


def fill(page: str, found: dict[str, str]) -> str:
    """`page` with the tables between its markers replaced; a table without runs says so."""
    return MARK.sub(lambda match: f"{match[1]}\n{found.get(match[2], 'No runs yet.')}\n\n{match[4]}", page)


# ------------------------------------------------------------------------------------------------ figures


def front(results: Sequence[Result], plan: dict, path: Path, settings: Sequence[str],
          only: Sequence[str] = ()) -> bool:
    """Accuracy against the strategies kept, one panel per setting that has runs, of all its arms or `only` some; bars
    are standard deviations over seeds."""
    panels = {setting: arms for setting in settings
              if (arms := by_arm(results, setting, only or plan["settings"][setting]["arms"]))}
    if not panels:
        return False
    wide = min(3, len(panels))
    high = -(-len(panels) // wide)
    with rc_context(TEXT):
        figure = Figure(figsize=(5.2 * wide, 4.2 * high), layout="constrained")
        every = figure.subplots(high, wide, squeeze=False).flatten()
        for axes in every[len(panels):]:
            axes.remove()
        for axes, (setting, arms) in zip(every, panels.items()):
            for arm, seeds in arms.items():
                i = list(NAMES).index(arm)              # one arm looks the same in every panel
                kept = [100 * result.kept for result in seeds.values() if result.kept is not None]
                accuracy = list(map(points, seeds.values()))
                if not kept:
                    continue
                colour, _, marker = STYLES[i % len(STYLES)]
                axes.errorbar(mean(kept), mean(accuracy), xerr=deviation(kept), yerr=deviation(accuracy), fmt=marker,
                              color=colour, markersize=7, elinewidth=0.8, capsize=2,
                              fillstyle=("full", "none", "left", "top")[i // len(STYLES)])
                axes.annotate(name_of(arm), (mean(kept), mean(accuracy)), textcoords="offset points",
                              xytext=(6, (4, -11)[i % 2]), fontsize=7.5)
            axes.axvline(90, color="0.6", linestyle=":", linewidth=1)
            axes.set(title=plan["settings"][setting]["title"], xlabel="strategies kept, % of those before training",
                     ylabel="accuracy, %")
            axes.margins(0.15)
            low, top = axes.get_ylim()
            more = max(0.0, 3 - (top - low)) / 2        # 3 points at least: less is noise, and should look like it
            axes.set_ylim(low - more, top + more)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)
    return True
