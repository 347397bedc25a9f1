"""The saved completions of a run or an evaluation, graded again: by the grader as it is now, by corrected golds."""
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

import files
from answers import Grade
from data import benchmark_name, load_problems
from eval import OF_RIGHT_TEXTS, summarize, with_average
from eval_samples import OwnGrader, assign_votes, by_problem, grader_of
from files import read_jsonl, require
from grader import Grader
from prompts import load_tokenizer, opening
from report.read import config_of, data_of, problem_finder, read_groups

CHUNK = 256                                             # records graded at a time
SHOWN = 10                                              # changes that are listed, of verdicts and of golds


def regrade(path: Path, opened: str | None, out: Path | None, correct: str | None = None,
            golds: Sequence[str] = ()) -> str:
    """Verdicts of now against those that were written, as lines for people.

    `opened` is what the chat template writes of the assistant's turn, None to ask the tokenizer at the config's
    model.path. `correct` names a function in place of the grader, None the one of the config. `golds` are files with
    corrected golds, [NAME=]FILE. With `out`, samples with the new golds and verdicts and results made of them go there;
    what is on disk stays, and a run's rewards and advantages stay what the policy was trained with.
    """
    sources = sorted(path.glob("*samples.jsonl")) if path.is_dir() else [path]
    if not sources:
        raise ValueError(f"{path} has no samples.jsonl and no *.samples.jsonl")
    for file in sources:
        check_samples(file)
    config, results = sources[0].with_name("config.toml"), sources[0].with_name("results.jsonl")
    settings = config_of(path)
    correct = settings.get("reward", {}).get("correct", "") if correct is None else correct
    if golds and correct:
        raise ValueError(f"--golds is for the grader, and reward.correct = {correct!r} says what is right without "
                         "golds; leave one of them out (--correct \"\" is the grader)")
    corrected = {file: read_golds(source, file, settings) for file, source in sources_of_golds(golds, sources).items()}
    before = {record["benchmark"]: record for _, record in read_jsonl(results)} if results.exists() else {}
    if opened is None:
        opened = opening_of(settings, config)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        if taken := [file.name for file in [*sources, results] if (out / file.name).exists()]:
            raise ValueError(f"--out {out} holds {taken[0]} already; name another folder")
        if config.exists():
            files.write(out / config.name, config.read_text(encoding="utf-8"))
    strict = {**settings.get("reward", {}), **settings.get("output", {})}
    lines, now = [], []
    with grader_of(correct, strict.get("workers", 2), strict.get("timeout_s", 5.0),
                   strict.get("require_box", True)) as grader:
        for file in sources:
            new, said = corrected.get(file, ({}, []))
            regraded = regrade_file(file, grader, opened, new, save=out is not None)
            lines += said + regraded.lines
            if regraded.records and "completions" not in regraded.records[0]:       # of an evaluation
                assign_votes(list(by_problem(regraded.records).values()), grader)
                name = file.name.removesuffix(".samples.jsonl")
                known = {key: value for key, value in before.get(name, {}).items()
                         if not (regraded.changed and key in OF_RIGHT_TEXTS)}
                model = settings.get("model", {}).get("path", str(path))
                now.append({"model": model, **known, **summarize(name, regraded.records)})
            if regraded.records:
                files.write_jsonl(out / file.name, regraded.records)
    if now:
        files.write_jsonl(out / results.name, with_average(now))
    return "\n".join(lines)


def check_samples(file: Path) -> None:
    """ValueError unless `file` holds completions that can be graded and, of an evaluation, what results are made of."""
    sizes = set()
    for group in read_groups(file):
        sizes.add(len(group["completions"]))
        for completion in group["completions"] if "step" not in group else ():
            require(completion, {"length": int, "finish": str, "reason": str},
                    f"{file}, problem {completion['problem']}", "a sample of an evaluation")
    if not sizes:
        raise ValueError(f"{file} has no completions")
    if len(sizes) > 1:
        raise ValueError(f"{file} is not whole: problems have {min(sizes)} to {max(sizes)} samples")


def opening_of(settings: dict, config: Path) -> str:
    """What the chat template of the policy that `config` names writes of the assistant's turn."""
    folder = settings.get("model", {}).get("path", "")
    if not (folder and Path(folder).is_dir()):
        missing = f"there is no {config} that names a policy"
        if folder:
            missing = f"model.path = {folder!r} in {config} is no folder here"
        raise ValueError(f"{missing}: give what its chat template writes of the assistant's turn as --opening, \"\" "
                         "for nothing")
    data = data_of(settings)
    return opening(load_tokenizer(folder, data), data)


Golds = dict[str, str | list[str]]                      # by what `problem_key` says


def problem_key(record: dict) -> str:
    """What tells the problem of a group or of a sample from the others of its file: its id; in a run, where ids may be
    places, with its text."""
    if "step" in record:
        return json.dumps([record.get("id"), record.get("problem")])
    place = record["place"] if "place" in record else record["problem"]
    return json.dumps(place if record.get("id") is None else record["id"])


def sources_of_golds(golds: Sequence[str], files: Sequence[Path]) -> dict[Path, str]:
    """For which samples file each [NAME=]FILE is; ValueError where none or several have the name."""
    names, found = {file.name.removesuffix(".samples.jsonl"): file for file in files}, {}
    for text in golds:
        name, source = benchmark_name(text)
        file = files[0] if len(files) == 1 else names.get(name)
        if file is None or file in found:
            raise ValueError(f"--golds {text}: say once for each benchmark whose golds these are, as in "
                             f"{next(iter(names))}={source}; there are {', '.join(names)}")
        found[file] = source
    return found


def read_golds(source: str, file: Path, settings: dict) -> tuple[Golds, list[str]]:
    """The golds of a file with problems, for the samples in `file`, and what they change as lines for people.

    It may have some of the problems. Raises ValueError for problems that an evaluation does not have, ids that do not
    say which problem is meant, and two golds for one.
    """
    groups, is_run = {}, False
    for group in read_groups(file):
        is_run = "step" in group
        groups.setdefault(problem_key(group), {})[group.get("place")] = group["answer"]
    rows, golds = load_problems(source, replace(data_of(settings), template="{problem}")), {}
    for row in rows:
        key = problem_key({"step": 0, **row}) if is_run else json.dumps(row["id"])
        if golds.setdefault(key, row["answer"]) != row["answer"]:
            raise ValueError(f"--golds {source} has two golds for the problem {key}: {golds[key]!r} and "
                             f"{row['answer']!r}")
        if len(groups.get(key, ())) > 1:
            raise ValueError(f"--golds {source}: {file} has {len(groups[key])} problems with the id {key}; give each "
                             "its own, there as \"id\" of its samples")
    unknown = [key for key in golds if key not in groups]
    if unknown and (not is_run or len(unknown) == len(golds)):
        raise ValueError(f"--golds {source}: {file} has no samples of {len(unknown)} of its {len(golds)} problems, "
                         f"such as {', '.join(unknown[:3])[:200]}; problems are known by the id of their samples")
    if not is_run and len(rows) != len(groups) and [row["id"] for row in rows] == list(range(len(rows))):
        raise ValueError(f"--golds {source}: without ids of their own, its {len(rows)} problems must be all "
                         f"{len(groups)} of {file}, in their order")
    olds = {key: gold for key, places in groups.items() for gold in places.values()}
    changed = [f"    {key[:80]}: {olds[key]!r} -> {gold!r}" for key, gold in golds.items()
               if olds.get(key, gold) != gold]
    missing = sum(key not in golds for key in olds)
    lines = [f"{file}: {len(changed)} of {len(olds)} golds changed by {source}"
             + (f", which does not have {missing} of the problems: these keep theirs" if missing else "")]
    return golds, lines + changed[:SHOWN] + ["    ..."] * (len(changed) > SHOWN)


class Regraded(NamedTuple):
    """What became of one samples file."""
    lines: list[str]                                    # for people
    records: list[dict]                                 # of the file, with the new verdicts; none unless `save`
    changed: bool                                       # whether any verdict did


def regrade_file(file: Path, grader: Grader | OwnGrader, opened: str, golds: Golds, save: bool) -> Regraded:
    before, after, records, examples, changes = [], [], [], [], Counter()
    for where, record, graded in graded_again(file, grader, opened, golds):
        for completion, gold, now in graded:
            before.append(completion["correct"])
            after.append(now.correct)
            if completion["correct"] != now.correct:
                changes[f"{completion.get('reason')} -> {now.reason}"] += 1
                examples.append(f"    {where}: {now.answer!r} for {gold!r}")
            if not grader.reads_answers:
                completion.pop("vote", None)            # of an answer that the grader had read
            if completion.get("finish") != "prompt":    # which was not sampled, and says so in its reason
                completion |= {"correct": now.correct, "reason": now.reason, "answer": now.answer}
        if save:
            records.append(record)
    lines = [f"{file}: {len(after)} completions, accuracy {np.mean(before):.4f} -> {np.mean(after):.4f}, "
             f"{len(examples)} verdicts changed"]
    lines += [f"{count:>8}  {change}" for change, count in changes.most_common()] + examples[:SHOWN]
    return Regraded(lines, records, bool(changes))


def problems_for(file: Path, grader: Grader | OwnGrader) -> Callable[[dict], dict]:
    """A function from a record of `file` to the problem that `grader` needs: of ours, the gold alone."""
    if not grader.reads_answers:
        return problem_finder(file, gold=False)

    def gold(record: dict) -> dict:
        answer = record.get("gold", record.get("answer"))
        golds = answer if isinstance(answer, list) and answer else [answer]
        if not all(isinstance(each, str) for each in golds):
            raise ValueError(f"{file} has {answer!r} where a gold should be; name a function that says what is right "
                             "with --correct")
        return {"answer": answer}

    return gold


def graded_again(file: Path, grader: Grader | OwnGrader, opened: str, golds: Golds
                 ) -> Iterator[tuple[str, dict, list[tuple[dict, str, Grade]]]]:
    """(place, record with its new gold, [(completion, gold, verdict of now) of each completion in it]) of a samples
    file."""
    reader, problem = read_jsonl(file), problems_for(file, grader)
    while chunk := list(islice(reader, CHUNK)):
        for _, record in chunk:
            if (key := problem_key(record)) in golds:
                record["answer" if "completions" in record else "gold"] = golds[key]
        groups = [(where, record, record.get("completions", [record]), problem(record)) for where, record in chunk]
        texts = [opened + completion["text"] for _, _, group, _ in groups for completion in group]
        grades = iter(grader.grade_rows(texts, [row for _, _, group, row in groups for _ in group]))
        for where, record, group, row in groups:
            yield where, record, [(completion, row["answer"], next(grades)) for completion in group]
