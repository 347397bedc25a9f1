"""Samples of a benchmark: problems in, graded completions out, kept as JSON lines.

A sample is a dict: "problem" (its place in the benchmark), "id", "sample" (0..n-1) and "seed", which fix its random
numbers, "gold", "text", "answer" (what was taken from the text, None for nothing), "correct", "reason" (answers/),
"length" in tokens, "finish" ("stop", "length", or "prompt" for a prompt that leaves no room in the context), "vote"
(what it counts for in a majority; not with `reward.correct`), and "label" where `eval.label` names strategies. It does
not depend on ranks, on its neighbours or on what was sampled before (in fp32).
"""
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, islice
from pathlib import Path
from typing import Annotated

from tqdm import tqdm

import files
from answers import Grade, compare_exact, normalize
from config import import_function
from data import DataConfig, benchmark_name, check_source, columns_of, first_gold
from grader import Grader
from model import Transformer
from prompts import decode, opening, prompt_tokens, stop_ids
from reward import per_completion
from sampler import Sampler, SamplerConfig

LESS_EVAL_MEMORY = "lower eval.slots (0 is all rows) or eval.max_new_tokens"
ROWS_PER_CALL = 2048                                    # completions sampled, at most, before they are graded and kept
# the same in units of eval.slots: with fewer, slots stand empty at the end of each call
SLOTS_PER_CALL = 4


@dataclass(frozen=True)
class EvalConfig:
    benchmarks: list[str] = field(default_factory=list)
    """JSONL, JSON or parquet files with a problem and an answer per row, patterns of such files, or
    hub:owner/name[/config][:split]; named as the file is, or NAME=source
    """
    samples: Annotated[int, ">= 1"] = 16
    """completions per problem (n)"""
    samples_of: dict[str, int] = field(default_factory=dict)
    """completions per problem of single benchmarks, such as {math500 = 4}"""
    prompt: str = ""
    """user turn of the evaluation with {problem} in it, in place of data.template; empty for that"""
    max_new_tokens: Annotated[int, ">= 1"] = 32768
    """completions are cut here"""
    temperature: Annotated[float, ">= 0"] = 0.6
    """sampling temperature; 0 is greedy, and one sample of each problem is drawn, as all would be equal"""
    top_p: Annotated[float, "> 0", "<= 1"] = 0.95
    """mass of the nucleus that is sampled from"""
    slots: Annotated[int, ">= 0", "free"] = 0
    """rows decoded at a time, 0 for all"""
    label: str = ""
    """"path.py:function" called with (text, problem row); returns the name of the strategy of a completion, or None"""
    seed: int = 0
    """seed of the evaluation's samples"""


def check_eval(config: EvalConfig, data: DataConfig, correct: str) -> None:
    """ValueError for what can be known to be wrong with benchmarks, prompts and the functions of `eval.label` and
    `reward.correct` before anything is loaded."""
    names = [benchmark_name(benchmark)[0] for benchmark in config.benchmarks]
    for benchmark in config.benchmarks:
        check_source("eval.benchmarks", benchmark_name(benchmark)[1])
    for name, samples in config.samples_of.items():
        if name not in names or samples < 1:
            raise ValueError(f"eval.samples_of.{name} = {samples}: needs the name of a benchmark ({', '.join(names)}) "
                             "and at least 1")
    for key, text in (("data.template", data.template), ("eval.prompt", config.prompt or "{problem}")):
        if "problem" not in columns_of(text):
            raise ValueError(f"{key} = {text!r} has no {{problem}} in it")
    for key, function in (("eval.label", config.label), ("reward.correct", correct)):
        if function:
            import_function(key, function)


def check_room(config: EvalConfig, context: int) -> None:
    """ValueError if a completion alone would fill the model's context."""
    if config.max_new_tokens >= context:
        raise ValueError(f"eval.max_new_tokens = {config.max_new_tokens} leaves no room for a prompt in the model's "
                         f"context of {context}; lower it")


def by_problem(samples: Iterable[dict]) -> dict[int, list[dict]]:
    """The samples of each problem, by its place in the benchmark."""
    groups: dict[int, list[dict]] = {}
    for sample in samples:
        groups.setdefault(sample["problem"], []).append(sample)
    return groups


def asked(config: EvalConfig, data: DataConfig) -> DataConfig:
    """`data` with the user turn of the evaluation."""
    return replace(data, template=config.prompt or data.template)


def settings_of(config: EvalConfig, benchmark: str) -> EvalConfig:
    """The settings of one benchmark: with its own n, which is 1 for greedy samples."""
    return replace(config, samples=config.samples_of.get(benchmark, config.samples) if config.temperature else 1)


def greedy_remark(config: EvalConfig) -> str:
    """What somebody should know who asks for several samples that would all be equal; "" otherwise."""
    names = [benchmark_name(benchmark)[0] for benchmark in config.benchmarks]
    most = max(config.samples_of.get(name, config.samples) for name in names)
    return "" if config.temperature or most == 1 else (
        f"eval.temperature = 0 is greedy: {most} samples of a problem would be equal, so one is drawn and counted")


def labeller(spec: str, key: str = "eval.label") -> Callable[[str, dict], str | None] | None:
    """The function that setting `key` names, None for ""; it raises ValueError if that returns anything but a string or
    None."""
    if not spec:
        return None
    function = import_function(key, spec)

    def label(text: str, row: dict) -> str | None:
        if not isinstance(name := function(text, row), str | None):
            raise ValueError(f"{key}: {spec} must return a string or None; got {name!r}")
        return name

    return label


class OwnGrader:
    """The function that `reward.correct` names, in the place of grader.Grader: it reads no answers, so there are no
    votes, and asks for no golds."""
    reads_answers = False

    def __init__(self, correct: str):
        self.name, self.function = f"reward.correct: {correct}", import_function("reward.correct", correct)

    def grade_rows(self, texts: Sequence[str], rows: Sequence[dict]) -> list[Grade]:
        """A grade for each text, "right" or "wrong", with the answer if the function tells it; ValueError if it returns
        anything but booleans or pairs (boolean, text or None)."""
        if not texts:
            return []
        grades = []
        for verdict in per_completion(self.name, self.function(list(texts), list(rows)), len(texts)):
            right, answer = verdict if isinstance(verdict, tuple) and len(verdict) == 2 else (verdict, None)
            if not isinstance(right, int | float) or right not in (0, 1) or not isinstance(answer, str | None):
                raise ValueError(f"{self.name} returned {repr(verdict)[:80]} for completion {len(grades)}; expected "
                                 "True or False, or a pair of that and the answer")
            grades.append(Grade(bool(right), "right" if right else "wrong", answer))
        return grades

    def close(self) -> None:
        pass

    def __enter__(self) -> "OwnGrader":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def grader_of(correct: str, workers: int, timeout_s: float, require_box: bool = True) -> Grader | OwnGrader:
    """What says which completions are right: the function that `reward.correct` names or, without one, the grader."""
    return OwnGrader(correct) if correct else Grader(workers, timeout_s, require_box)


def eval_sampler(model: Transformer, tokenizer, config: EvalConfig, data: DataConfig = DataConfig()) -> Sampler:
    """A sampler with the evaluation's settings over `model`."""
    check_room(config, model.g.context)
    settings = SamplerConfig(config.samples, config.max_new_tokens, config.temperature, config.slots)
    return Sampler(model, settings, stop_ids(model, tokenizer, data), config.top_p, "eval")


def assign_votes(groups: Sequence[list[dict]], grader: Grader | OwnGrader) -> None:
    """Gives each sample of each problem its "vote".

    The (first) gold for a right answer, None for no answer or an empty box, else the first equal answer of its problem.
    Wrong answers are equal as text, as fractions, or by algebra; those that the grader could not read or settle in time
    are equal only as text. Under `reward.correct` no answers are read, and two right completions need not agree on one:
    nobody votes.
    """
    if not grader.reads_answers:
        return
    # of each problem: the first of each answer, and whether algebra can be asked about it
    leaders: list[dict[str, bool]] = [{} for _ in groups]
    found: list[dict[str, str]] = [{} for _ in groups]      # of each problem: the leader of each answer
    wrong = [{answer: s["reason"] == "different" for s in group
              if not s["correct"] and (answer := normalize(s["answer"] or ""))} for group in groups]
    # the turn-th answer of every problem at once: workers share the questions
    for turn in range(max(map(len, wrong), default=0)):
        asked = []
        for i, (answer, settles) in ((i, list(answers.items())[turn]) for i, answers in enumerate(wrong)
                                     if len(answers) > turn):
            same = {leader: compare_exact(answer, leader) for leader in leaders[i]}
            found[i][answer] = next((leader for leader, equal in same.items() if equal), answer)
            if found[i][answer] == answer:
                asked += [(i, answer, leader) for leader, equal in same.items()
                          if equal is None and settles and leaders[i][leader]]
        grades = grader.grade_batch([f"\\boxed{{{answer}}}" for _, answer, _ in asked],
                                    [leader for *_, leader in asked])
        for (i, answer, leader), grade in zip(asked, grades):
            if grade.correct and found[i][answer] == answer:
                found[i][answer] = leader
        for i, answers in enumerate(found):
            leaders[i] |= {answer: wrong[i][answer] for answer, leader in answers.items() if answer == leader}
    for group, names in zip(groups, found):
        for s in group:
            s["vote"] = first_gold(s["gold"]) if s["correct"] else names.get(normalize(s["answer"] or ""))


def sample_groups(sampler: Sampler, tokenizer, rows: Sequence[dict], data: DataConfig, config: EvalConfig,
                  grader: Grader | OwnGrader, positions: Sequence[int] | None = None, progress: bool = True,
                  desc: str = "eval", kept: Iterable[list[dict]] = ()) -> Iterator[list[list[dict]]]:
    """Samples and grades every problem of `rows` config.samples times, some problems at a time.

    `positions` are the rows' places in the whole benchmark. A prompt that does not fit into the context is not sampled;
    its samples are wrong, with the finish "prompt". `kept` has the first samples of each row from an evaluation with
    fewer, as many for each: only the others are drawn.
    """
    positions, kept = range(len(rows)) if positions is None else positions, iter(kept)
    label = labeller(config.label)
    data = asked(config, data)
    stops, begun = stop_ids(sampler.model, tokenizer, data), opening(tokenizer, data)
    room = sampler.model.g.context - config.max_new_tokens
    step = max(1, min(ROWS_PER_CALL, SLOTS_PER_CALL * config.slots or ROWS_PER_CALL) // config.samples)
    done = right = 0
    seconds = 0.1 if sys.stderr.isatty() else 60.0      # between two lines of it: in a log file each of them stays
    with tqdm(total=len(rows), desc=desc, unit="problem", disable=not progress, leave=False, mininterval=seconds,
              maxinterval=seconds) as bar:
        for start in range(0, len(rows), step):
            part, places = rows[start : start + step], positions[start : start + step]
            prompts = [prompt_tokens(tokenizer, row, data) for row in part]
            fits = [i for i, prompt in enumerate(prompts) if len(prompt) <= room]
            before = list(islice(kept, len(part))) or [[] for _ in part]
            first = len(before[0])
            drawn = sampler.generate(
                [prompts[i] for i in fits], config.samples - first, (config.seed,), [places[i] for i in fits], first)
            sampled = dict(zip(fits, drawn))
            texts = {i: decode(tokenizer, [completion.tokens for completion in group], stops)
                     for i, group in sampled.items()}
            turns = [begun + text for i in fits for text in texts[i]]
            asked_of = [part[i] for i in fits for _ in texts[i]]
            grades = iter(grader.grade_rows(turns, asked_of))
            groups = []
            for i, (row, place) in enumerate(zip(part, places)):
                group = [{"problem": place, "id": row["id"], "sample": j, "seed": config.seed, "gold": row["answer"]}
                         for j in range(first, config.samples)]
                for j, sample in enumerate(group):
                    if i in sampled:
                        item, completion = next(grades), sampled[i][j]
                        sample |= {"text": texts[i][j], "answer": item.answer, "correct": item.correct,
                                   "reason": item.reason, "length": len(completion.tokens), "finish": completion.finish}
                    else:
                        sample |= {"text": "", "answer": None, "correct": False, "reason": "prompt too long",
                                   "length": 0, "finish": "prompt"}
                    sample |= {"label": label(sample["text"], row)} if label else {}
                groups.append(before[i] + group)
            assign_votes(groups, grader)
            yield groups
            done += len(part)
            right += sum(sample["correct"] for group in groups for sample in group)
            bar.set_postfix_str(f"accuracy {right / (done * config.samples):.3f}", refresh=False)
            bar.update(len(part))


def sample_problems(*arguments, **options) -> list[dict]:
    """All samples of `sample_groups`, with the same arguments."""
    return [sample for groups in sample_groups(*arguments, **options) for group in groups for sample in group]


# ------------------------------------------------------------------------------------------------ files
# Of a benchmark that is being sampled there is a folder NAME.parts with a file per rank, to which whole problems are
# appended; a kill leaves at most one that is not whole, at the end of a file. What stands there is collected in one
# file, in the order of the problems, when the evaluation goes on and when it is done: then as NAME.samples.jsonl. That
# file stays where it is while more samples are drawn: the parts then get its samples and the new ones.


def whole_problems(path: Path, n: int) -> Iterator[tuple[list[dict], int]]:
    """(the n samples of a problem, bytes they take) of a samples file, up to the first that are not what was
    written."""
    with open(path, "rb") as file:
        while lines := list(islice(file, n)):
            try:
                samples = [json.loads(line) for line in lines if line.endswith(b"\n")]
                problem = samples[0]["problem"]
                if [(sample["problem"], sample["sample"]) for sample in samples] != [(problem, i) for i in range(n)]:
                    return
            except (ValueError, TypeError, LookupError):
                return
            yield samples, sum(map(len, lines))


def samples_in(path: Path) -> int:
    """Samples per problem of a finished samples file, by its first problem; 0 if there is no file."""
    def problems() -> Iterator[int]:
        for where, sample in files.read_jsonl(path):
            files.require(sample, {"problem": int}, where, "a sample; remove the file, and the same command makes it "
                                                           "again")
            yield sample["problem"]

    return len(list(next(groupby(problems()), (0, ()))[1])) if path.exists() else 0


def collect(parts: Path, to: Path, n: int) -> list[int]:
    """Puts the whole problems of all files in `parts` into the file `to`, in order, and removes those files.

    Returns the problems.
    """
    sources = sorted(parts.glob("*.jsonl"))
    places: dict[int, tuple[Path, int, int]] = {}       # of each problem: file, offset, bytes; texts stay on disk
    for file in sources:
        offset = 0
        for samples, size in whole_problems(file, n):
            places[samples[0]["problem"]] = file, offset, size
            offset += size
    with open(files.part_of(to), "wb") as out:
        for problem in sorted(places):
            file, offset, size = places[problem]
            with open(file, "rb") as source:
                source.seek(offset)
                out.write(source.read(size))
    files.publish(to)
    for file in sources:
        if file != to:
            file.unlink()
    return sorted(places)
