"""Accuracy, pass@k and diversity of a policy on problems with known answers.

    python eval.py --config configs/eval_tiny.toml --model tiny/policy [--model PATH ...] [section.key=value ...]

Every problem is sampled n times. Reported per benchmark: avg@n with its standard error over problems, pass@k by the unbiased
estimator (arXiv:2107.03374), and, where a labeller names the strategy of a completion, the effective number of strategies
among right answers. All samples are kept as JSON lines. The trainer uses the same functions for its own evaluations.
"""
import argparse
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import torch
from tqdm import tqdm

from config import describe, dump, import_function, load
from data import DataConfig, load_problems, load_tokenizer, opening, prompt_tokens
from grader import Grader
from model import DTYPES, ModelConfig, Transformer
from ranks import run_main
from sampler import Sampler, SamplerConfig, stop_ids

STRATEGY_SAMPLES = 16                                   # right answers per problem behind "effective strategies": the estimate depends on it
ROWS_PER_CALL = 2048                                    # completions sampled between two updates of the progress bar


@dataclass(frozen=True)
class EvalConfig:
    benchmarks: list[str] = field(default_factory=list)
    """JSONL files with a problem and an answer per line; the file's name is the benchmark's"""
    samples: Annotated[int, ">= 1"] = 16
    """completions per problem (n)"""
    max_new_tokens: Annotated[int, ">= 1"] = 32768
    """completions are cut here"""
    temperature: Annotated[float, ">= 0"] = 0.6
    """sampling temperature; 0 is greedy"""
    top_p: Annotated[float, "> 0", "<= 1"] = 0.95
    """mass of the nucleus that is sampled from"""
    slots: Annotated[int, ">= 0"] = 0
    """rows decoded at a time, 0 for all"""
    label: str = ""
    """"path.py:function" called with (text, problem row); returns the name of the strategy of a completion, or None"""
    seed: int = 0
    """seed of the evaluation's samples"""


@dataclass(frozen=True)
class OutputConfig:
    dir: str = "runs/eval"
    """folder for a folder per model, with results.jsonl, config.toml and the samples"""
    workers: Annotated[int, ">= 1"] = 2
    """grader processes"""
    timeout_s: Annotated[float, "> 0"] = 5.0
    """an answer that takes longer to verify is wrong"""
    require_box: bool = True
    """an answer outside \\boxed{} is wrong; false lets math-verify look for one, as the published evaluation does"""


@dataclass(frozen=True)
class Config:
    model: ModelConfig
    data: DataConfig
    eval: EvalConfig
    output: OutputConfig


def model_folder(config: ModelConfig, patterns: Sequence[str] = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model")) -> str:
    """The local folder of `model.path`; if it is a hub name, the files that match `patterns` are fetched. ValueError if there is none."""
    if Path(config.path).is_dir():
        return config.path
    if config.path.count("/") != 1 or config.path.startswith((".", "/")):
        raise ValueError(f"model.path = {config.path!r} is neither a folder nor a hub name owner/name")
    from huggingface_hub import snapshot_download       # only runs that name a hub model need it

    try:
        return snapshot_download(config.path, allow_patterns=list(patterns))
    except Exception as error:                          # offline, no such repository, no access: hub errors of many classes
        raise ValueError(f"model.path = {config.path!r} is not a folder and the hub did not give it: {str(error).splitlines()[0]}") from None


# ------------------------------------------------------------------------------------------------ statistics


def pass_at_k(n: int, c: int, k: int) -> float:
    """Probability that k of n samples, c of them right, drawn without replacement, contain a right one: 1 - C(n-c, k) / C(n, k).

    The unbiased estimator of arXiv:2107.03374, exact in integers before the division. Copy-pasteable: needs only math.
    """
    if not 0 <= c <= n or not 1 <= k <= n:
        raise ValueError(f"pass@k needs 0 <= c <= n and 1 <= k <= n; got n={n}, c={c}, k={k}")
    total = math.comb(n, k)
    return (total - math.comb(n - c, k)) / total


def effective_labels(labels: Sequence[str]) -> float:
    """exp of the entropy of the labels' frequencies: k equally frequent labels give k. In [1, number of distinct labels].

    Copy-pasteable: needs only math, Counter and Sequence.
    """
    if not labels:
        raise ValueError("effective_labels needs at least one label")
    shares = [count / len(labels) for count in Counter(labels).values()]
    return math.exp(-sum(share * math.log(share) for share in shares))


def standard_error(values: Sequence[float]) -> float:
    """Of the mean, over problems, with ddof 1; 0 for a single value."""
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / max(len(values) - 1, 1) / len(values))


def summarize(benchmark: str, samples: Iterable[dict]) -> dict:
    """The figures of one benchmark from its samples (dicts as `sample_problems` makes them), n the same for every problem."""
    by_problem: dict = {}
    for sample in samples:
        by_problem.setdefault(sample["problem"], []).append(sample)
    groups = [sorted(by_problem[problem], key=lambda sample: sample["sample"]) for problem in sorted(by_problem)]
    n = len(groups[0])
    counts = [sum(sample["correct"] for sample in group) for group in groups]
    flat = [sample for group in groups for sample in group]
    record = {
        "benchmark": benchmark, "n": len(groups), "samples": n,
        "accuracy": sum(counts) / (n * len(groups)),
        "accuracy_se": standard_error([count / n for count in counts]),
        "pass_at_k": {str(2**i): sum(pass_at_k(n, c, 2**i) for c in counts) / len(counts) for i in range(n.bit_length()) if 2**i <= n},
        "truncated": sum(sample["finish"] == "length" for sample in flat) / len(flat),
        "no_answer": sum(sample["reason"] == "no box" for sample in flat) / len(flat),
        "length": sum(sample["length"] for sample in flat) / len(flat),
    }
    if any("label" in sample for sample in flat):
        right = [[str(sample["label"]) for sample in group if sample["correct"]] for group in groups]
        enough = [effective_labels(labels[:STRATEGY_SAMPLES]) for labels in right if len(labels) >= STRATEGY_SAMPLES]
        pooled = [label for labels in right for label in labels]
        record |= {
            "effective_strategies": sum(enough) / len(enough) if enough else None,
            "effective_strategies_m": STRATEGY_SAMPLES, "effective_strategies_problems": len(enough),
            "effective_strategies_pooled": effective_labels(pooled) if pooled else None,
            "strategies": dict(Counter(pooled).most_common()),
        }
    return record


def format_record(record: dict) -> str:
    """One line for people."""
    line = f"{record['benchmark']}: accuracy {record['accuracy']:.3f} ± {record['accuracy_se']:.3f} (avg@{record['samples']}, {record['n']} problems)"
    line += " | " + " ".join(f"pass@{k} {value:.3f}" for k, value in record["pass_at_k"].items() if k != "1")
    if record.get("effective_strategies") is not None:
        line += (f" | effective strategies {record['effective_strategies']:.2f} (m={record['effective_strategies_m']}, "
                 f"{record['effective_strategies_problems']} of {record['n']} problems; pooled {record['effective_strategies_pooled']:.2f})")
    return line


# ------------------------------------------------------------------------------------------------ the work


def sample_problems(sampler: Sampler, tokenizer, rows: Sequence[dict], data: DataConfig, config: EvalConfig, grader: Grader,
                    positions: Sequence[int] | None = None, progress: bool = True, desc: str = "eval") -> list[dict]:
    """Samples and grades every problem of `rows` config.samples times; `positions` are the rows' places in the whole benchmark."""
    positions = range(len(rows)) if positions is None else positions
    label: Callable | None = import_function("eval.label", config.label) if config.label else None
    step, begun = max(1, ROWS_PER_CALL // config.samples), opening(tokenizer)
    samples = []
    with tqdm(total=len(rows), desc=desc, unit="problem", disable=not progress, leave=False) as bar:
        for start in range(0, len(rows), step):
            part, places = rows[start : start + step], positions[start : start + step]
            prompts = [prompt_tokens(tokenizer, row["problem"], data) for row in part]
            groups = sampler.generate(prompts, config.samples, (config.seed,), places)
            flat = [(row, place, i, completion) for row, place, group in zip(part, places, groups) for i, completion in enumerate(group)]
            texts = tokenizer.batch_decode([completion.tokens for *_, completion in flat], skip_special_tokens=True)
            grades = grader.grade_batch([begun + text for text in texts], [row["answer"] for row, *_ in flat])
            for (row, place, i, completion), text, item in zip(flat, texts, grades):
                sample = {"problem": place, "id": row["id"], "sample": i, "seed": config.seed, "text": text, "gold": row["answer"], "answer": item.answer,
                          "correct": item.correct, "reason": item.reason, "length": len(completion.tokens), "finish": completion.finish}
                samples.append(sample | ({"label": label(text, row)} if label else {}))
            bar.update(len(part))
    return samples


def eval_sampler(model: Transformer, tokenizer, config: EvalConfig) -> Sampler:
    """A sampler with the evaluation's settings over `model`."""
    settings = SamplerConfig(config.samples, config.max_new_tokens, config.temperature, config.slots)
    return Sampler(model, settings, stop_ids(model.generation_config, tokenizer.eos_token_id), config.top_p)


def evaluate(model: Transformer, tokenizer, benchmark: str, data: DataConfig, config: EvalConfig, grader: Grader) -> tuple[dict, list[dict]]:
    """(record, samples) of one benchmark file."""
    name = Path(benchmark).stem
    samples = sample_problems(eval_sampler(model, tokenizer, config), tokenizer, load_problems(benchmark, data), data, config, grader, desc=name)
    return summarize(name, samples), samples


def write_jsonl(path: Path, records: Iterable[dict]) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def parse_args(cls: type, argv: list[str], doc: str, extra: Callable[[argparse.ArgumentParser], None] = lambda parser: None) -> argparse.Namespace:
    """--config FILE section.key=value ..., with every key of config class `cls` in --help."""
    parser = argparse.ArgumentParser(description=doc.split("\n\n")[0], epilog="config keys:" + describe(cls), formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, metavar="FILE", help="TOML file with the run's settings")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that replace those of the file")
    extra(parser)
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    args = parse_args(Config, argv, __doc__, lambda parser: parser.add_argument(
        "--model", action="append", metavar="PATH", help="policy to evaluate instead of model.path; may be repeated"))
    for path in args.model or [None]:
        override = [f"model.path={json.dumps(path)}"] if path else []
        config = load(Config, args.config, [*args.overrides, *override])
        if not config.eval.benchmarks:
            raise ValueError("eval.benchmarks is empty: name at least one JSONL file")
        for benchmark in config.eval.benchmarks:
            skipped: list[str] = []
            load_problems(benchmark, config.data, skipped)
            if skipped:
                print(f"{benchmark}: {len(skipped)} rows left out ({skipped[0]})")
        out = Path(config.output.dir) / config.model.path.strip("/.").replace("/", "-")
        settings = out / "config.toml"
        if settings.exists() and settings.read_text(encoding="utf-8") != dump(config):
            raise ValueError(f"{out} holds an evaluation with other settings (see its config.toml); name another output.dir")
        folder = model_folder(config.model)
        tokenizer = load_tokenizer(folder)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        model = Transformer.from_pretrained(folder, DTYPES[config.model.dtype], device)
        model.n_tokens = min(model.g.vocab, len(tokenizer))
        out.mkdir(parents=True, exist_ok=True)
        settings.write_text(dump(config), encoding="utf-8")
        records = []
        with Grader(config.output.workers, config.output.timeout_s, config.output.require_box) as grader:
            for benchmark in config.eval.benchmarks:
                record, samples = evaluate(model, tokenizer, benchmark, config.data, config.eval, grader)
                write_jsonl(out / f"{record['benchmark']}.samples.jsonl", samples)
                records.append({"model": config.model.path, **record, "settings": asdict(config.eval)})
                print(f"{config.model.path} | {format_record(record)}")
        write_jsonl(out / "results.jsonl", records)
        print(f"written to {out}/")
    return 0


if __name__ == "__main__":
    run_main(main)
