"""Reads metrics.jsonl, samples.jsonl and results.jsonl; a file that is missing, empty or of another kind is a ValueError with file and line."""
import json
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import groupby
from pathlib import Path

import numpy as np

from data import DataConfig, benchmark_name, load_problems
from eval import RESULT
from files import read_jsonl, require

NUMBER = (int, float)
TRAIN = {"step": int, "reward": NUMBER, "accuracy": NUMBER}
EVAL = {"step": int, "benchmark": str, "accuracy": NUMBER, "accuracy_se": NUMBER, "pass_at_k": dict}
GROUP = {"step": int, "position": int, "completions": list}
COMPLETION = {"text": str, "correct": bool, "reward": NUMBER, "smi": NUMBER, "weight": NUMBER, "adjusted": NUMBER, "advantage": NUMBER}
SAMPLE = {"problem": int, "sample": int, "text": str, "correct": bool}


@dataclass(frozen=True)
class Run:
    """What a metrics.jsonl holds, and where the groups are."""
    path: Path
    label: str                                          # config file and overrides but for [run]: the same for all seeds of a recipe
    recipe: str                                         # resolved settings but for [run]
    config: dict
    train: list[dict]
    evals: list[dict]
    samples: Path | None


@dataclass(frozen=True)
class Evaluation:
    """A folder of eval.py: the record of each benchmark, and the samples of every problem in order, without their texts."""
    path: Path
    model: str
    results: dict[str, dict]
    problems: dict[str, dict[int, list[dict]]]


def read_run(path: Path) -> Run:
    file = path / "metrics.jsonl" if path.is_dir() else path
    config, argv, records = None, [], {"train": [], "eval": []}
    for where, record in read_jsonl(file):
        require(record, {"kind": str}, where, "a record of a metrics.jsonl")
        if record["kind"] == "run":
            require(record, {"config": dict, "argv": list}, where, "a run record")
            config, argv = record["config"], record["argv"]
        elif record["kind"] in records:
            require(record, TRAIN if record["kind"] == "train" else EVAL, where, f"a record of kind {record['kind']}")
            records[record["kind"]].append(record)
    if config is None:
        raise ValueError(f"{file}: no record of kind \"run\", so this is not a metrics.jsonl of the trainer")
    names = [Path(word).stem if word.endswith(".toml") else word for word in argv[1:] if not word.startswith(("-", "run."))]
    settings = {section: values for section, values in config.items() if section != "run"}
    samples = file.with_name("samples.jsonl")
    return Run(path, " ".join(names) or path.name, json.dumps(settings, sort_keys=True), config, records["train"], records["eval"],
               samples if file.name == "metrics.jsonl" and samples.is_file() and samples.stat().st_size else None)


def read_evaluation(folder: Path) -> Evaluation:
    """ValueError if a benchmark's samples are not all there."""
    results, problems = {}, {}
    for where, record in read_jsonl(folder / "results.jsonl"):
        if isinstance(record, dict) and "benchmarks" in record:         # the average of those above
            continue
        require(record, RESULT, where, "a record of an evaluation")
        name, found = record["benchmark"], {}
        for line, sample in read_jsonl(folder / f"{name}.samples.jsonl"):
            require(sample, SAMPLE, line, "a sample of an evaluation")
            found.setdefault(sample["problem"], []).append({key: sample[key] for key in ("id", "sample", "gold", "correct", "vote", "label") if key in sample})
        if (whole := sum(len(samples) == record["samples"] for samples in found.values())) != record["n"]:
            raise ValueError(f"{folder / name}.samples.jsonl has all {record['samples']} samples of {whole} problems where {where} counts {record['n']}; evaluate again")
        results[name], problems[name] = record, {problem: sorted(found[problem], key=lambda sample: sample["sample"]) for problem in sorted(found)}
    if not results:
        raise ValueError(f"{folder / 'results.jsonl'} has no record of a benchmark")
    return Evaluation(folder, next(iter(results.values()))["model"], results, problems)


def read_any(paths: Sequence[Path]) -> tuple[list[Run], list[Evaluation]]:
    """A folder with results.jsonl is an evaluation, and one with folders of them is all of these; one with metrics.jsonl, or a file, is a run.

    A run that is named twice is read once: it is one seed.
    """
    runs, evaluations = {}, []
    for path in paths:
        folders = [path] if (path / "results.jsonl").exists() else []
        if not folders and (path.is_file() or (path / "metrics.jsonl").exists()):
            runs.setdefault((path / "metrics.jsonl" if path.is_dir() else path).resolve(), path)
        elif not (folders := folders or sorted(file.parent for file in path.glob("*/results.jsonl"))):
            raise ValueError(f"{path} " + ("has neither metrics.jsonl nor results.jsonl" if path.is_dir() else "does not exist"))
        evaluations += map(read_evaluation, folders)
    return list(map(read_run, runs.values())), evaluations


def read_groups(path: Path) -> Iterator[dict]:
    """Groups of completions: the records of a run's samples.jsonl, or the samples of an evaluation by problem, right ones with reward 1."""
    def checked() -> Iterator[dict]:
        for where, record in read_jsonl(path):
            if isinstance(record, dict) and "completions" in record:
                require(record, GROUP, where, "a group of a samples.jsonl")
                for i, completion in enumerate(record["completions"], 1):
                    require(completion, COMPLETION, f"{where}, completion {i}", "a group of a samples.jsonl")
            else:
                require(record, SAMPLE, where, "a sample of a run or an evaluation")
            yield record

    for problem, records in groupby(checked(), lambda record: record.get("problem") if "sample" in record else None):
        if problem is None:
            yield from records
        else:
            samples = [sample | {"reward": float(sample["correct"])} for sample in records]
            yield {"id": samples[0].get("id"), "place": problem, "answer": samples[0].get("gold"),
                   "completions": samples}


def config_of(path: Path) -> dict:
    """The settings in config.toml next to the file `path`, or in the folder; {} if there is none."""
    file = (path if path.is_dir() else path.parent) / "config.toml"
    if not file.is_file():
        return {}
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not valid TOML: {error}") from None


def data_of(settings: dict) -> DataConfig:
    """The [data] section of `settings`, with the user turn that its evaluations ask with."""
    keys = {field.name for field in fields(DataConfig)}
    data = DataConfig(**{key: value for key, value in settings.get("data", {}).items() if key in keys})
    prompt = "" if "run" in settings else settings.get("eval", {}).get("prompt")
    return replace(data, template=prompt) if prompt else data


def problem_finder(file: Path, gold: bool) -> Callable[[dict], dict]:
    """A function from a record of the samples file `file` to its problem with all columns, as users' functions saw it.

    Problems are read again from the data that config.toml next to the file names, with checked golds or, without
    `gold`, whatever answers they have. Raises ValueError where that is not there or holds other problems.
    """
    settings = config_of(file)
    if "run" in settings:
        source = settings["data"]["train"]
    else:
        names = dict(map(benchmark_name, settings.get("eval", {}).get("benchmarks", [])))
        source = names.get(file.name.removesuffix(".samples.jsonl"))
    if source is None:
        raise ValueError(f"{file.with_name('config.toml')} names no data with the problems of {file.name}")
    rows = load_problems(source, data_of(settings), gold=gold)
    places = {json.dumps([row["id"], row["problem"]]): row for row in reversed(rows)}

    def find(record: dict) -> dict:
        if "step" in record:
            row = places.get(json.dumps([record["id"], record["problem"]]))
        else:
            place = record.get("place", record["problem"])
            row = rows[place] if place < len(rows) and rows[place]["id"] == record.get("id") else None
        if row is None:
            raise ValueError(f"{file}: {source!r} no longer has the problem with the id {record.get('id')!r}")
        return row

    return find


def samples_file(path: Path) -> Path:
    """The file that `path` names, or the only one with samples in the folder it names."""
    if not path.is_dir():
        return path
    found = [path / "samples.jsonl"] if (path / "samples.jsonl").exists() else sorted(path.glob("*.samples.jsonl"))
    if len(found) != 1:
        raise ValueError(f"{path} has {len(found)} files *.samples.jsonl; name one" + "".join(f" ({file.name})" for file in found[:1]))
    return found[0]


def some_groups(path: Path, most: int) -> list[dict]:
    """At most `most` groups of at least 2 completions, evenly spaced over the file; ValueError if there is none."""
    total = sum(1 for _ in read_groups(path))
    wanted = set(np.linspace(0, total - 1, max(0, min(most, total))).round().astype(int).tolist())
    groups = [group for i, group in enumerate(read_groups(path)) if i in wanted and len(group["completions"]) > 1]
    if not groups:
        raise ValueError(f"{path} has no group of at least 2 completions" if most > 0 else f"--groups must be >= 1; got {most}")
    return groups
