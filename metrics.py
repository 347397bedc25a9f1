"""Statistics of samples, the figures of a training step and their line, and trackers besides metrics.jsonl."""
import math
import os
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from config import import_function
from files import read_jsonl

# N completions

# ------------------------------------------------------------------------------------------------ statistics


def pass_at_k(n: int, c: int, k: int) -> float:
    """Probability that k of n samples, c right, drawn without replacement, hold a right one: 1 - C(n-c, k) / C(n, k).

    The unbiased estimator of arXiv:2107.03374, exact in integers before the division. Copy-pasteable: needs only math.
    """
    if not 0 <= c <= n or not 1 <= k <= n:
        raise ValueError(f"pass@k needs 0 <= c <= n and 1 <= k <= n; got n={n}, c={c}, k={k}")
    total = math.comb(n, k)
    return (total - math.comb(n - c, k)) / total


def maj_at_k(votes: Sequence[Hashable], right: Hashable, k: int) -> float:
    """Probability that the most frequent of k votes, drawn without replacement, is `right`; t that tie share it, 1/t.

    `votes` names the answer of each sample, None for no answer, which nobody votes for. The expected value over all
    k-subsets, counted in integers: for x right votes, the subsets in which no rival has more, by how many have as many.
    Copy-pasteable: needs only math, Counter, Hashable and Sequence.
    """
    n = len(votes)
    if not 1 <= k <= n:
        raise ValueError(f"maj@k needs 1 <= k <= n; got n={n}, k={k}")
    rivals = Counter(vote for vote in votes if vote is not None)
    c, total, value = rivals.pop(right, 0), math.comb(n, k), 0.0
    for x in range(1, min(c, k) + 1):
        # rivals that can have x votes; the other votes decide nothing
        reach = [size for size in rivals.values() if x <= size] if 2 * x <= k else []
        rest = n - c - sum(reach)
        # (rivals with x votes, votes drawn from rivals): number of subsets
        ways = {(0, 0): 1}
        for size in reach:
            wider: Counter = Counter()
            for (tied, drawn), count in ways.items():
                for y in range(min(x, k - x - drawn) + 1):
                    wider[tied + (y == x), drawn + y] += count * math.comb(size, y)
            ways = wider
        value += sum(math.comb(c, x) * count * math.comb(rest, k - x - drawn) / (total * (tied + 1))
                     for (tied, drawn), count in ways.items())
    return value


def effective_labels(labels: Sequence[str]) -> float:
    """exp of the entropy of the labels' frequencies: k equally frequent labels give k. In [1, number of labels].

    Copy-pasteable: needs only math, Counter and Sequence.
    """
    if not labels:
        raise ValueError("effective_labels needs at least one label")
    shares = [count / len(labels) for count in Counter(labels).values()]
    return math.exp(-sum(share * math.log(share) for share in shares))


def vendi_score(similarity_NN: Tensor) -> float:
    """exp of the entropy of the eigenvalues of S / N: N for N unlike texts, 1 for clones (arXiv:2210.02410).

    `similarity_NN` are cosines.

    Copy-pasteable: needs only torch.
    """
    eigenvalues_N = torch.linalg.eigvalsh(similarity_NN.double() / len(similarity_NN)).clamp(min=0)
    return torch.special.entr(eigenvalues_N).sum().exp().item()


def mean(values: Iterable[float | None]) -> float | None:
    """Of the values that there are; None if there are none."""
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None


def deviation(values: Sequence[float]) -> float | None:
    """Standard deviation with ddof 1; None for a single value."""
    centre = mean(values)
    return math.sqrt(sum((value - centre) ** 2 for value in values) / (len(values) - 1)) if len(values) > 1 else None


def standard_error(values: Sequence[float]) -> float:
    """Of the mean, over problems, with ddof 1; 0 for a single value."""
    return (deviation(values) or 0.0) / math.sqrt(len(values))


# ------------------------------------------------------------------------------------------------ figures of a run


def weight_length(groups: list[list[dict]]) -> float | None:
    """Correlation of weight and length of rewarded completions around the means of their groups, in [-1, 1]; None where
    one of the two does not vary, as without DRA.

    What an embedder reads and no reward does is free to vary, and the longer it is, the more it can.
    """
    weights, lengths = [], []
    for group in groups:
        rewarded = [completion for completion in group if completion["reward"] > 0]
        for values, key in ((weights, "weight"), (lengths, "length")):
            centre = mean(completion[key] for completion in rewarded)
            values += [completion[key] - centre for completion in rewarded]
    scale = math.sqrt(sum(w * w for w in weights) * sum(x * x for x in lengths))
    return sum(w * x for w, x in zip(weights, lengths)) / scale if scale > 1e-9 else None


def group_figures(records: list[dict]) -> dict:
    """Means over all completions and groups of a step, from its samples.jsonl records (those of all ranks)."""
    groups = [record["completions"] for record in records]
    flat = [completion for group in groups for completion in group]

    def average(key: str) -> float:
        return sum(completion[key] for completion in flat) / len(flat)

    weights = [[c["weight"] for c in group] for group in groups]
    pushed = [sum(abs(c["advantage"]) for c in group) for group in groups]
    equal = [len({c["reward"] for c in group}) == 1 for group in groups]
    similarities = [record["similarity"] for record in records if record["similarity"] is not None]
    right = [[str(c["label"]) for c in group if c["correct"]] for group in groups if "label" in group[0]]
    modes = [effective_labels(labels) for labels in right if labels]
    return {
        "reward": average("reward"), "accuracy": average("correct"), "smi": average("smi"), "weight": average("weight"),
        "adjusted": average("adjusted"),
        "density": 1 + average("smi"), "weight_min": sum(map(min, weights)) / len(groups),
        "weight_max": sum(map(max, weights)) / len(groups), "weight_length": weight_length(groups),
        "similarity": sum(similarities) / len(similarities) if similarities else None,
        "embed_cut": sum(c["cut"] for c in flat),
        "equal_group_share": sum(push for push, same in zip(pushed, equal) if same) / (sum(pushed) or 1.0),
        "rewards": {name: mean(c["rewards"][name] for c in flat) for name in flat[0]["rewards"]},
        "zero_advantage": sum(all(abs(c["advantage"]) < 1e-6 for c in group) for group in groups) / len(groups),
        "modes": sum(modes) / len(modes) if modes else None,
        "tokens": sum(c["length"] for c in flat), "length": average("length"),
        "truncated": sum(c["finish"] == "length" for c in flat) / len(flat),
        "reasons": dict(Counter(c["reason"] for c in flat)),
    }


def step_line(record: dict, steps: int) -> str:
    """A train record of metrics.jsonl as one line of at most 160 columns, with what the run has: no SMI without DRA, no
    strategies without labels, no KL without a reference. docs/manual.md explains the names."""
    def number(value: float, digits: int) -> str:
        """With `digits` after the point below 10, one less below 100, and so on."""
        return f"{value:.{max(0, digits + 1 - len(str(int(abs(value)))))}f}"

    def shown(key: str, name: str, digits: int) -> list[str]:
        return [] if record[key] is None else [f"{name} {number(record[key], digits)}"]

    rewards = [f"reward {record['reward']:.3f}", f"acc {record['accuracy']:.3f}",
               *(shown("smi", "smi", 2) if record["similarity"] is not None else []), *shown("modes", "modes", 2),
               f"zero-adv {record['zero_advantage']:.2f}"]
    update = [*shown("kl", "kl", 4), *shown("entropy", "ent", 2), *shown("grad_norm", "gnorm", 2)]
    rollout = [f"len {record['length']:.0f}", f"trunc {record['truncated']:.2f}"]
    seconds = "+".join(number(record[key], 1) for key in ("sample_s", "reward_s", "update_s"))
    speed = record["tokens_per_s"]
    blocks = [f"step {record['step']}/{steps}", *map(" ".join, (rewards, update, rollout)), f"{seconds} s",
              f"{number(speed, 1)} tok/s" if speed < 10_000 else f"{number(speed / 1000, 2)}k tok/s"]
    line = " | ".join(blocks)
    return line if len(line) <= 160 else line.replace(" | ", " ")


def noise_note(records: Sequence[dict]) -> str:
    """A line where DRA may be paying for noise, else "".

    That is: in the last quarter of the train records rewarded completions weigh more the longer they are, and since the
    first quarter a twentieth more of all became too long for the limit, or all became longer by half.
    """
    quarter = len(records) // 4
    if not quarter:
        return ""

    def means(part: Sequence[dict]) -> list[float | None]:
        return [mean(record.get(key) for record in part) for key in ("weight_length", "length", "truncated")]

    (_, length, cut), (paid, length_now, cut_now) = means(records[:quarter]), means(records[-quarter:])
    if paid is None or paid < 0.3 or (length_now < 1.5 * length and cut_now < cut + 0.05):
        return ""
    return (f"note: DRA pays for length here: among the rewarded completions of a group, weight and length correlate "
            f"with {paid:.2f}, and since the first steps completions went from {length:.1f} to {length_now:.1f} "
            f"tokens, {cut:.0%} to {cut_now:.0%} of them cut. Is it noise? See the last groups in samples.jsonl; "
            "docs/rewards.md says what to do")


def strategies_of(record: dict) -> str:
    """Effective strategies of an evaluation's record, and of how many problems: "2.41 (131 of 200)"; "-" for none."""
    if record.get("effective_strategies") is None:
        return "-"
    return f"{record['effective_strategies']:.2f} ({record['effective_strategies_problems']} of {record['n']})"


def before_and_after(run_dir: Path) -> str:
    """First and last evaluation of every benchmark in a run's metrics.jsonl, and where its files are."""
    records = [record for _, record in read_jsonl(run_dir / "metrics.jsonl") if record["kind"] == "eval"]
    lines = [f"\n{'benchmark':<20}{'step':>6}{'accuracy':>16}{'pass@8':>8}{'cut':>7}{'effective strategies':>23}"
             f"{'different':>11}"] if records else []
    for name in dict.fromkeys(record["benchmark"] for record in records):
        mine = [record for record in records if record["benchmark"] == name]
        for record in (mine[0], mine[-1]):
            more = record["pass_at_k"].get("8"), record.get("distinct_strategies")
            passed, different = ("-" if value is None else f"{value:.2f}" for value in more)
            lines.append(f"{name:<20}{record['step']:>6}{record['accuracy']:>8.3f} ± {record['accuracy_se']:.3f}"
                         f"{passed:>8}{record['truncated']:>7.3f}{strategies_of(record):>23}{different:>11}")
    lines.append(f"\npolicy       {run_dir}/final\nmetrics      {run_dir}/metrics.jsonl\nsamples      "
                 f"{run_dir}/samples.jsonl\ncheckpoints  {run_dir}/checkpoints\nconfig       {run_dir}/config.toml")
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------------ trackers


def check_trackers(names: Sequence[str]) -> None:
    """ValueError unless each of `run.trackers` is a function of the user's, or known and installed.

    Imports no library.
    """
    for name in names:
        if ":" in name:
            import_function("run.trackers", name)
            continue
        if name not in ("tensorboard", "wandb"):
            raise ValueError(f'run.trackers: {name!r} is not known; use "tensorboard", "wandb" or "path.py:function"')
        if find_spec(name) is None:
            raise ValueError(f"run.trackers: {name!r} is not installed; pip install {name}, or take it out of "
                             "run.trackers")


def scalars(record: dict) -> dict[str, float]:
    """Numbers of a record, but the step, under "train/reward", "train/rewards/format", "eval/test/pass_at_k/4"."""
    def flat(prefix: str, value: object) -> dict[str, float]:
        if isinstance(value, dict):
            return {name: number for key, part in value.items()
                    for name, number in flat(f"{prefix}/{key}", part).items()}
        return {prefix: value} if isinstance(value, int | float) else {}

    prefix = "/".join(["train"] if record["kind"] == "train" else ["eval", record["benchmark"]])
    return flat(prefix, {key: value for key, value in record.items() if key not in ("kind", "step", "benchmark")})


class Trackers:
    """TensorBoard event files in RUN/tensorboard, a Weights & Biases run in the group named after the run folder or as
    WANDB_* of the environment say, functions of the user's; metrics.jsonl has it all."""

    def __init__(self, names: Sequence[str], run_dir: Path, config: dict, step: int):
        """`step`: how many are done; TensorBoard hides what an interrupted run wrote after them.

        A run that goes on is another one of its W&B group.
        """
        self.writer = self.wandb = None
        self.functions = [import_function("run.trackers", name) for name in names if ":" in name]
        if "tensorboard" in names:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=step + (step > 0))
        if "wandb" in names:
            import wandb

            ours = {"project": "dra-grpo", "run_group": run_dir.name, "name": f"{run_dir.name} from {step}",
                    "dir": str(run_dir)}
            ours = {key.removeprefix("run_"): value for key, value in ours.items()
                    if not os.environ.get(f"WANDB_{key.upper()}")}
            try:
                self.wandb = wandb.init(**ours, config=config)
            except Exception as error:                  # not logged in, offline: errors of many classes
                what = (str(error).splitlines() or [repr(error)])[0]
                raise ValueError(f"run.trackers: wandb does not start: {what}; WANDB_MODE=offline keeps its "
                                 "files here") from None

    def log(self, records: Sequence[dict]) -> None:
        for record in records:
            for function in self.functions:
                function(record)
            if record["kind"] in ("train", "eval"):
                values = scalars(record)
                if self.writer:
                    for name, value in values.items():
                        self.writer.add_scalar(name, value, record["step"])
                if self.wandb:
                    self.wandb.log(values, step=record["step"])

    def close(self) -> None:
        if self.writer:
            self.writer.close()
        if self.wandb:
            self.wandb.finish()
