"""What the files of runs and evaluations show: reads metrics.jsonl, samples.jsonl and results.jsonl, needs no policy.

    python report.py compare EVAL EVAL ...      paired bootstrap over problems, and what may be concluded; checkpoints of one run as a curve
    python report.py page RUN_OR_EVAL ...       curves and completion groups in one HTML page, and its PNGs
    python report.py consistency SAMPLES        do rewards differ where texts do? (Figure 2 of arXiv:2505.09655)
    python report.py kernel SAMPLES             is this embedder fit for DRA on these texts?
    python report.py regrade RUN_OR_EVAL        grades all kept completions again

RUN is a run's folder or a metrics.jsonl, EVAL a folder that eval.py wrote, SAMPLES the samples.jsonl of either or its folder. The trainer
imports the figures of a step and the trackers from here, so whatever takes long to import is imported where it is used.
"""
import argparse
import json
import re
from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import islice
from os.path import normpath
from pathlib import Path

import numpy as np

from data import load_tokenizer, opening
from eval import OF_RIGHT_TEXTS, STRATEGY_SAMPLES, effective_labels, maj_at_k, pass_at_k, standard_error, summarize, with_average
from grader import Grader
from ranks import run_main
from records import Evaluation, beside, read_any, read_groups, read_jsonl, require
from samples import by_problem, name_votes, write_jsonl

# ------------------------------------------------------------------------------------------------ a step of the trainer


def group_figures(records: list[dict]) -> dict:
    """Means over all completions and groups of a step, from its samples.jsonl records (those of all ranks)."""
    groups = [record["completions"] for record in records]
    flat = [completion for group in groups for completion in group]

    def mean(key: str) -> float:
        return sum(completion[key] for completion in flat) / len(flat)

    weights = [[c["weight"] for c in group] for group in groups]
    pushed = [sum(abs(c["advantage"]) for c in group) for group in groups]
    equal = [len({c["reward"] for c in group}) == 1 for group in groups]
    similarities = [record["similarity"] for record in records if record["similarity"] is not None]
    right = [[str(c["label"]) for c in group if c["correct"]] for group in groups if "label" in group[0]]
    modes = [effective_labels(labels) for labels in right if labels]
    return {
        "reward": mean("reward"), "accuracy": mean("correct"), "smi": mean("smi"), "weight": mean("weight"), "adjusted": mean("adjusted"),
        "density": 1 + mean("smi"), "weight_min": sum(map(min, weights)) / len(groups), "weight_max": sum(map(max, weights)) / len(groups),
        "similarity": sum(similarities) / len(similarities) if similarities else None, "embed_cut": sum(c["cut"] for c in flat),
        "equal_group_share": sum(push for push, same in zip(pushed, equal) if same) / (sum(pushed) or 1.0),
        "rewards": {name: sum(c["rewards"][name] for c in flat) / len(flat) for name in flat[0]["rewards"]},
        "zero_advantage": sum(all(abs(c["advantage"]) < 1e-6 for c in group) for group in groups) / len(groups),
        "modes": sum(modes) / len(modes) if modes else None,
        "tokens": sum(c["length"] for c in flat), "length": mean("length"), "truncated": sum(c["finish"] == "length" for c in flat) / len(flat), "reasons": dict(Counter(c["reason"] for c in flat)),
    }


def step_line(record: dict, steps: int) -> str:
    """A train record of metrics.jsonl as one line for people; the README explains the names."""
    modes = "" if record["modes"] is None else f" | modes {record['modes']:.2f}"
    return (f"step {record['step']}/{steps} | reward {record['reward']:.3f} | acc {record['accuracy']:.3f} | smi {record['smi']:.2f}{modes} | "
            f"zero-adv {record['zero_advantage']:.2f} | kl {record['kl']:.4f} | ent {record['entropy']:.3f} | gnorm {record['grad_norm']:.2f} | "
            f"len {record['length']:.0f} | trunc {record['truncated']:.2f} | gap {record['gap']:.0e} | gen {record['sample_s']:.2f}s | rew {record['reward_s']:.2f}s | "
            f"upd {record['update_s']:.2f}s | {record['tokens_per_s'] / 1000:.1f}k tok/s")


def before_and_after(run_dir: Path) -> str:
    """First and last evaluation of every benchmark, and where things are."""
    records = [record for record in map(json.loads, (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()) if record["kind"] == "eval"]
    lines = [f"\n{'benchmark':<20}{'step':>6}{'accuracy':>20}{'effective strategies':>24}"] if records else []
    for name in dict.fromkeys(record["benchmark"] for record in records):
        mine = [record for record in records if record["benchmark"] == name]
        for record in (mine[0], mine[-1]):
            strategies = record.get("effective_strategies")
            shown = "-" if strategies is None else f"{strategies:.2f}"
            lines.append(f"{name:<20}{record['step']:>6}{record['accuracy']:>12.3f} ± {record['accuracy_se']:.3f}{shown:>24}")
    lines.append(f"\npolicy       {run_dir}/final\nmetrics      {run_dir}/metrics.jsonl\nsamples      {run_dir}/samples.jsonl\n"
                 f"checkpoints  {run_dir}/checkpoints\nconfig       {run_dir}/config.toml")
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------------ trackers


def check_trackers(names: Sequence[str]) -> None:
    """ValueError unless each of `run.trackers` is known and installed; imports none of them."""
    for name in names:
        if name not in ("tensorboard", "wandb"):
            raise ValueError(f'run.trackers: {name!r} is not known; use "tensorboard" or "wandb"')
        if find_spec(name) is None:
            raise ValueError(f"run.trackers: {name!r} is not installed; pip install {name}, or take it out of run.trackers")


def scalars(record: dict) -> dict[str, float]:
    """Numbers of a train or eval record under "train/reward", "train/rewards/format", "eval/test/pass_at_k/4"; without the step."""
    def flat(prefix: str, value: object) -> dict[str, float]:
        if isinstance(value, dict):
            return {name: number for key, part in value.items() for name, number in flat(f"{prefix}/{key}", part).items()}
        return {prefix: value} if isinstance(value, int | float) else {}

    prefix = "/".join(["train"] if record["kind"] == "train" else ["eval", record["benchmark"]])
    return flat(prefix, {key: value for key, value in record.items() if key not in ("kind", "step", "benchmark")})


class Trackers:
    """TensorBoard event files in RUN/tensorboard, or a Weights & Biases run in the group named after the run folder; metrics.jsonl has it all."""

    def __init__(self, names: Sequence[str], run_dir: Path, config: dict, step: int):
        """`step`: how many are done; TensorBoard hides what an interrupted run wrote behind them. A run that goes on is another one of its W&B group."""
        self.writer = self.wandb = None
        if "tensorboard" in names:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=step + (step > 0))
        if "wandb" in names:
            import wandb

            try:
                self.wandb = wandb.init(project="dra-grpo", group=run_dir.name, name=f"{run_dir.name} from {step}", dir=str(run_dir), config=config)
            except Exception as error:                  # not logged in, offline: errors of many classes
                what = (str(error).splitlines() or [repr(error)])[0]
                raise ValueError(f"run.trackers: wandb does not start: {what}; WANDB_MODE=offline keeps its files here") from None

    def log(self, records: Sequence[dict]) -> None:
        for record in records:
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


# ------------------------------------------------------------------------------------------------ compare


RESAMPLES = 10_000


def paired_bootstrap(differences: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """(mean, low, high): mean over benchmarks of the mean difference over problems, and its 95 % interval over problems.

    One sequence per benchmark with the difference of the two models on each problem. Problems are drawn within each benchmark, so the interval
    holds for problems like these, with the completions sampled anew; it knows nothing of how another training run would have ended. Plain
    percentiles are too narrow for few problems (at avg@16 they hold the truth 85 % of the time for 5, 91 % for 10, 93 % for 30); these are
    the expanded ones of Hesterberg (2015, arXiv:1411.5279), at the smallest benchmark's size: 95 % for each. One problem has no interval: -inf, inf.
    """
    from scipy.stats import bootstrap

    samples = [np.asarray(difference, float) for difference in differences]
    centre = float(np.mean([sample.mean() for sample in samples]))
    fewest = min(map(len, samples))
    if fewest < 2:
        return centre, -np.inf, np.inf
    interval = bootstrap(samples, lambda *parts, axis: np.mean([part.mean(axis) for part in parts], 0), vectorized=True, n_resamples=RESAMPLES,
                         batch=max(1, 10**7 // sum(map(len, samples))), method="percentile", confidence_level=1 - 2 * expanded_tail(fewest),
                         rng=np.random.default_rng(0)).confidence_interval
    return centre, float(interval.low), float(interval.high)


def expanded_tail(n: int) -> float:
    """Share of resamples beyond each end of a 95 % interval for n values: for 2.5 %, t instead of normal, and deviations with ddof 1 instead of 0."""
    from scipy.stats import norm, t

    return float(norm.sf(t.isf(0.025, n - 1) * np.sqrt(n / (n - 1))))


def sign_flip_p(differences: Sequence[Sequence[float]]) -> float:
    """Two-sided p-value of the mean difference if either model might have been A on each problem: signs are flipped at random.

    A bootstrap of few differences that are not 0 cannot see how easily they come to lie on one side; this counts it.
    """
    from scipy.stats import permutation_test

    weighted_N = np.concatenate([np.asarray(part, float) / len(part) for part in differences])
    if len(weighted_N) == 1:
        return 1.0
    return float(permutation_test((weighted_N,), np.sum, permutation_type="samples", vectorized=True, n_resamples=RESAMPLES,
                                  batch=max(1, 10**7 // len(weighted_N)), rng=np.random.default_rng(0)).pvalue)


def conclusion(centre: float, low: float, high: float, p: float, n: str, unit: str = "points") -> str:
    """What a difference A - B with its interval and p-value allows to say: a model is ahead if both agree."""
    spread = max(high - centre, centre - low)
    if not np.isfinite(spread):
        return f"A - B = {centre:+.1f} {unit}: one problem says nothing"
    verdict = f"{'A' if low > 0 else 'B'} is ahead" if (low > 0 or high < 0) and p < 0.05 else "not distinguishable"
    return f"A - B = {centre:+.1f} ± {spread:.1f} {unit}: {verdict} at n = {n}"


def measures(a: dict[int, list[dict]], b: dict[int, list[dict]]) -> dict[str, list[tuple[float, float]]]:
    """Values (of a, of b) on each problem of one benchmark: accuracy, pass@k and maj@k in points, effective strategies where both have enough right answers.

    pass@k and maj@k are those of as many samples as both have, their first: with more on one side, equal models would differ by the other's noise.
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
        found[f"maj@{k}"] = [tuple(100 * maj_at_k([sample["vote"] for sample in samples], samples[0]["gold"], k) for samples in pair) for pair in equal]
    labels = [tuple([str(sample["label"]) for sample in samples if sample["correct"]][:STRATEGY_SAMPLES] for samples in pair)
              for pair in pairs if all("label" in sample for samples in pair for sample in samples)]
    enough = [pair for pair in labels if min(map(len, pair)) == STRATEGY_SAMPLES]
    if enough:
        found["strategies"] = [tuple(map(effective_labels, pair)) for pair in enough]
    return found


# what does not change the figures of a policy, or is shown beside them
UNIMPORTANT = ("model.path", "eval.benchmarks", "eval.samples_of", "eval.slots", "eval.seed", "output.dir", "output.workers", "diversity.")


def conditions(evaluation: Evaluation, benchmark: str) -> dict[str, object]:
    """The settings under which a benchmark was evaluated, "section.key": value."""
    sections = {**beside(evaluation.path), "eval": evaluation.results[benchmark].get("settings", {})}
    flat = {f"{section}.{key}": value for section, values in sections.items() for key, value in values.items()}
    return {key: value for key, value in flat.items() if not key.startswith(UNIMPORTANT)}


def require_same_problems(a: Evaluation, b: Evaluation) -> list[str]:
    """The benchmarks of both; ValueError where there is none or one of them holds other problems."""
    common = [name for name in a.problems if name in b.problems]
    if not common:
        raise ValueError(f"{a.path} and {b.path} have no benchmark in common ({', '.join(a.problems)} and {', '.join(b.problems)})")
    for name in common:
        keys = [{problem: (samples[0].get("id"), samples[0]["gold"]) for problem, samples in side.problems[name].items()} for side in (a, b)]
        if keys[0] != keys[1]:
            place = min(problem for problem in keys[0].keys() | keys[1].keys() if keys[0].get(problem) != keys[1].get(problem))
            raise ValueError(f"{a.path} and {b.path} did not see the same problems of {name}: problem {place} is {keys[0].get(place)} and {keys[1].get(place)}")
    return common


def compare_two(a: Evaluation, b: Evaluation) -> list[str]:
    """Table and sentences for one pair."""
    common = require_same_problems(a, b)
    lines = [f"A  {a.model}  ({a.path})", f"B  {b.model}  ({b.path})"]
    differ = {}
    for name in common:
        first, second = conditions(a, name), conditions(b, name)
        differ |= {key: f"{key} differs, {first.get(key)!r} and {second.get(key)!r}" for key in {**first, **second} if first.get(key) != second.get(key)}
    lines += [f"   note: {text}" for text in differ.values()]
    left_out = [name for name in [*a.problems, *b.problems] if name not in common]
    lines += [f"   note: only one of them has {', '.join(left_out)}"] if left_out else []
    lines.append(f"\n{'':<34}{'A':>8}{'B':>8}{'A - B':>8}   {'95 % interval':<16}{'p':>7}{'problems':>10}")
    by_measure: dict[str, list[tuple[str, list[tuple[float, float]]]]] = {}
    for name in common:
        for measure, pairs in measures(a.problems[name], b.problems[name]).items():
            by_measure.setdefault(measure, []).append((name, pairs))
    sentences = []
    for measure, parts in by_measure.items():
        for name, chosen in [*((name, [pairs]) for name, pairs in parts), *([("average", [pairs for _, pairs in parts])] if len(parts) > 1 else [])]:
            means = [float(np.mean([np.mean([pair[side] for pair in pairs]) for pairs in chosen])) for side in (0, 1)]
            differences = [[x - y for x, y in pairs] for pairs in chosen]
            figures = *paired_bootstrap(differences), sign_flip_p(differences)
            digits, n = 2 if measure == "strategies" else 1, sum(map(len, chosen))
            interval = f"[{figures[1]:+.{digits}f}, {figures[2]:+.{digits}f}]"
            lines.append(f"{name + ' ' + measure:<34}{means[0]:>8.{digits}f}{means[1]:>8.{digits}f}{figures[0]:>+8.{digits}f}   {interval:<16}{figures[3]:>7.3f}{n:>10}")
        sentences.append(f"{name}, {measure}: " + conclusion(*figures, str(n), *(["strategies"] if measure == "strategies" else [])))
    return [*lines, "", *sentences]


def expected_maximum(k: int) -> float:
    """Mean of the largest of k independent standard normal numbers: k times the integral of x phi(x) Phi(x)^(k-1)."""
    from scipy.integrate import quad
    from scipy.stats import norm

    return quad(lambda x: k * x * norm.pdf(x) * norm.cdf(x) ** (k - 1), -9, 9)[0]


def gain_of_choosing(scores_KN: np.ndarray) -> float:
    """What the best of K equally good checkpoints gains by chance on N problems: the bootstrap mean of max_k (resampled mean - mean of k).

    How hard the drawn problems are is common to all K and adds 0 on average; what remains is the noise by which checkpoints differ.
    """
    rng, N = np.random.default_rng(0), scores_KN.shape[1]
    counts_RN = rng.multinomial(N, np.full(N, 1 / N), size=2000)
    return max(0.0, float((counts_RN @ (scores_KN - scores_KN.mean(1, keepdims=True)).T / N).max(1).mean()))


def curve(title: str, rows: list[tuple[str, float, float, float | None]], gain: float, bound: str) -> list[str]:
    """Checkpoints of one run, rows of (step, accuracy, standard error, effective strategies) in 0..1, as lines for people."""
    best = max(rows, key=lambda row: row[1])
    lines = [f"\n{title}", f"{'step':>8}{'accuracy':>18}{'strategies':>12}"]
    for step, accuracy, error, strategies in rows:
        shown = "-" if strategies is None else f"{strategies:.2f}"
        lines.append(f"{step:>8}{100 * accuracy:>10.1f} ± {100 * error:<5.1f}{shown:>12}   " + "#" * round(50 * accuracy))
    return [*lines, f"warning: the best is step {best[0]} with {100 * best[1]:.1f}, but the best of {len(rows)} equally good checkpoints gains {bound}{100 * gain:.1f} points "
                    "by chance alone; report the last one, or choose on other problems than you report"]


CHECKPOINT = re.compile(r"(.*?)/(?:checkpoints/step-(\d+)/policy|(final))")


def compare(paths: Sequence[Path]) -> str:
    """Evaluations against the first of them, and checkpoints of one run as a curve."""
    runs, evaluations = read_any(paths)
    if len(evaluations) == 1 and not runs:
        raise ValueError(f"{paths[0]} alone: name another evaluation to compare it with")
    lines = []
    for other in evaluations[1:]:
        lines += [*compare_two(evaluations[0], other), ""]
    if len(evaluations) > 2:
        lines.append(f"note: {len(evaluations) - 1} comparisons, each with its own 95 %; of 20 comparisons of equal models one is expected to exclude 0")
    if len(evaluations) > 1:
        lines.append("note: intervals are over problems and samples of these very models; whether one recipe beats another takes several training seeds of each")
    by_run: dict[str, list[tuple[float, str, Evaluation]]] = {}
    for evaluation in evaluations:
        if match := CHECKPOINT.fullmatch(normpath(evaluation.model)):
            by_run.setdefault(match[1], []).append((float(match[2] or "inf"), match[3] or str(int(match[2])), evaluation))
    for run, found in by_run.items():
        found.sort(key=lambda item: item[0])
        for name in dict.fromkeys(name for *_, evaluation in found for name in evaluation.problems):
            mine = [(step, evaluation) for _, step, evaluation in found if name in evaluation.problems]
            if len(mine) < 2:
                continue
            for _, evaluation in mine[1:]:
                require_same_problems(mine[0][1], evaluation)
            scores_KN = np.array([[np.mean([sample["correct"] for sample in samples]) for samples in evaluation.problems[name].values()] for _, evaluation in mine])
            rows = [(step, row.mean(), standard_error(row.tolist()), evaluation.results[name].get("effective_strategies"))
                    for (step, evaluation), row in zip(mine, scores_KN)]
            lines += curve(f"checkpoints of {run} on {name}", rows, gain_of_choosing(scores_KN), "")
    for run in runs:
        if not run.evals:
            raise ValueError(f"{run.path} has no evaluations; compare needs some")
        for name in dict.fromkeys(record["benchmark"] for record in run.evals):
            rows = [(str(record["step"]), record["accuracy"], record["accuracy_se"], record.get("effective_strategies"))
                    for record in run.evals if record["benchmark"] == name]
            lines += curve(f"{run.path} on {name}", rows, expected_maximum(len(rows)) * max(row[2] for row in rows), "up to ")
    return "\n".join(lines).strip("\n")


# ------------------------------------------------------------------------------------------------ regrade


REGRADED = 256                                          # records graded at a time


def check_kept(file: Path) -> None:
    """ValueError unless `file` holds completions that can be graded again and, of an evaluation, what results are made of."""
    sizes = set()
    for group in read_groups(file):
        require(group, {"answer": str}, str(file), "a file of kept completions")
        sizes.add(len(group["completions"]))
        for completion in group["completions"] if "step" not in group else ():
            require(completion, {"length": int, "finish": str, "reason": str}, f"{file}, problem {completion['problem']}", "a sample of an evaluation")
    if not sizes:
        raise ValueError(f"{file} has no completions")
    if len(sizes) > 1:
        raise ValueError(f"{file} is not whole: problems have {min(sizes)} to {max(sizes)} samples")


def regrade(path: Path, begun: str | None, out: Path | None) -> str:
    """Verdicts of all kept completions of a run or an evaluation by the grader as it is now, against those that were written.

    `begun` is what the chat template writes of the assistant's turn, None to ask the tokenizer at the config's model.path. With `out`, samples
    with the new verdicts and results made of them go there; a run's rewards and advantages stay what the policy was trained with.
    """
    files = sorted(path.glob("*samples.jsonl")) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"{path} has no samples.jsonl and no *.samples.jsonl")
    for file in files:
        check_kept(file)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        if there := [file.name for file in [*files, Path("results.jsonl")] if (out / file.name).exists()]:
            raise ValueError(f"--out {out} holds {there[0]} already; name another folder")
    config = beside(path)
    if begun is None:
        folder = config.get("model", {}).get("path", "")
        if not (folder and Path(folder).is_dir()):
            raise ValueError(f'model.path = {folder!r} is no folder here: give what its chat template writes of a turn as --opening, "" for nothing')
        begun = opening(load_tokenizer(folder))
    written = files[0].with_name("results.jsonl")
    old = {record["benchmark"]: record for _, record in read_jsonl(written)} if written.exists() else {}
    settings = {**config.get("reward", {}), **config.get("output", {})}
    lines, results = [], []
    with Grader(settings.get("workers", 2), settings.get("timeout_s", 5.0), settings.get("require_box", True)) as grader:
        for file in files:
            reader, kept, examples, changes, before, after = read_jsonl(file), [], [], Counter(), [], []
            while chunk := list(islice(reader, REGRADED)):
                pairs = [(where, completion, record.get("gold", record.get("answer"))) for where, record in chunk for completion in record.get("completions", [record])]
                grades = grader.grade_batch([begun + completion["text"] for _, completion, _ in pairs], [gold for *_, gold in pairs])
                for (where, completion, gold), item in zip(pairs, grades):
                    before.append(completion["correct"])
                    after.append(item.correct)
                    if completion["correct"] != item.correct:
                        changes[f"{completion.get('reason')} -> {item.reason}"] += 1
                        examples.append(f"    {where}: {item.answer!r} for {gold!r}")
                    if completion.get("finish") != "prompt":        # which was not sampled, and says so in its reason
                        completion |= {"correct": item.correct, "reason": item.reason, "answer": item.answer}
                kept += [record for _, record in chunk] if out is not None else []
            lines.append(f"{file}: {len(after)} completions, accuracy {np.mean(before):.4f} -> {np.mean(after):.4f}, {len(examples)} verdicts changed")
            lines += [f"{count:>8}  {change}" for change, count in changes.most_common()] + examples[:10]
            if out is not None:
                if "completions" not in kept[0]:
                    name_votes(list(by_problem(kept).values()), grader)
                    name = file.name.removesuffix(".samples.jsonl")
                    known = {key: value for key, value in old.get(name, {}).items() if not (changes and key in OF_RIGHT_TEXTS)}
                    results.append({"model": config.get("model", {}).get("path", str(path)), **known, **summarize(name, kept)})
                write_jsonl(out / file.name, kept)
    if results:
        write_jsonl(out / "results.jsonl", with_average(results))
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("compare", help="evaluations on the same problems against the first; checkpoints of one run as a curve")
    command.add_argument("paths", nargs="+", type=Path, metavar="EVAL_OR_RUN")
    command = commands.add_parser("page", help="curves and completion groups in one HTML page")
    command.add_argument("paths", nargs="+", type=Path, metavar="RUN_OR_EVAL")
    command.add_argument("--out", type=Path, default=Path("runs/page"), help="folder for index.html and its PNGs (default runs/page)")
    command.add_argument("--groups", type=int, default=4, help="prompts whose completions are shown, 0 for none (default 4)")
    for name, text in (("consistency", "do rewards differ where texts do?"), ("kernel", "is this embedder fit for DRA on these texts?")):
        command = commands.add_parser(name, help=text)
        command.add_argument("path", type=Path, metavar="SAMPLES")
        command.add_argument("overrides", nargs="*", metavar="dra.key=value", help="settings instead of those in config.toml beside the samples")
        command.add_argument("--groups", type=int, default=1000, help="groups that are looked at, evenly spaced over the file (default 1000)")
        if name == "kernel":
            command.add_argument("--label", default="", help='"path.py:function" called with (text, record of the samples file), instead of the labels in the file')
    command = commands.add_parser("regrade", help="grades all kept completions again")
    command.add_argument("path", type=Path, metavar="RUN_OR_EVAL")
    command.add_argument("--opening", help="what the chat template writes of the assistant's turn; by default that of the tokenizer at model.path")
    command.add_argument("--out", type=Path, help="folder for samples and results with the new verdicts")
    args, more = parser.parse_known_args(argv)
    if more and not ("overrides" in args and all(text.startswith("dra.") for text in more)):
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    try:
        run_command(args, more)
    except OSError as error:
        raise ValueError(f"{error.filename}: {error.strerror}") from error
    return 0


def run_command(args: argparse.Namespace, more: list[str]) -> None:
    """`more` are overrides that stand behind options, where argparse does not look for them."""
    match args.command:
        case "compare":
            print(compare(args.paths))
        case "page":
            from page import write_page

            runs, evaluations = read_any(args.paths)
            print("\n".join(f"written {path}" for path in write_page(runs, evaluations, args.out, args.groups)))
        case "consistency":
            from kernel import consistency

            print(consistency(args.path, args.overrides + more, args.groups))
        case "kernel":
            from kernel import kernel

            print(kernel(args.path, args.overrides + more, args.groups, args.label))
        case "regrade":
            print(regrade(args.path, args.opening, args.out))


if __name__ == "__main__":
    run_main(main)
