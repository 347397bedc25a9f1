"""Accuracy, pass@k, maj@k and diversity of policies on problems with known answers.

    torchrun eval.py --config configs/eval_math.toml --model PATH [--model PATH ...] [--protocol paper] \\
        [section.key=value ...]
    python eval.py --config configs/eval_math.toml --dry-run --gpu h100     memory, time and cost (plan/)

Every problem is sampled n times; all ranks share the problems. Reported per benchmark and on average: avg@n with its
standard error over problems and its standard deviation over seeds, pass@k by the unbiased estimator (arXiv:2107.03374),
maj@k, how answers fail, and the diversity of right answers. Every sample is saved as soon as it is made
(eval_samples.py), and an evaluation that was interrupted in any way continues where it stopped. The trainer uses the
same functions for its own evaluations. More samples or benchmarks are added to a finished evaluation by the same
command with larger settings. `python -m report compare` compares policies.
"""
import json
import math
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from os.path import normpath
from pathlib import Path
from typing import Annotated

import torch

import checkpoint
import files
from config import changes, dump, load, parse_args
from data import DataConfig, benchmark_name, columns_of, first_gold, load_benchmarks, load_problems, remarks
from embedder import Embedder
from eval_samples import (LESS_EVAL_MEMORY, EvalConfig, OwnGrader, asked, by_problem, check_eval, check_room, collect,
                          eval_sampler, grader_of, greedy_remark, sample_groups, sample_problems, samples_in,
                          settings_of, whole_problems)
from files import append_jsonl, read_jsonl, require
from grader import Grader
from metrics import deviation, effective_labels, maj_at_k, mean, pass_at_k, standard_error, vendi_score
from model import DTYPES, Geometry, ModelConfig, Transformer, weight_files
from plan import dry_run, preflight
from prompts import SMALL_FILES, check_template, load_tokenizer, messages_of, model_folder, prompt_text
from ranks import Stop, gather_over_ranks, is_first_rank, max_over_ranks, run_main, start_ranks
from reward import CorrectConfig, cosine_similarity

# N completions

STRATEGY_SAMPLES = 16                                   # right answers per problem that "effective strategies" counts
VENDI_SAMPLES = 4                                       # and that the Vendi score does
NUMBER = (int, float)
RESULT = {"model": str, "benchmark": str, "n": int, "samples": int, "accuracy": NUMBER, "accuracy_se": NUMBER,
          "pass_at_k": dict}                            # what readers need of a record in results.jsonl
GROWING = ("benchmarks", "samples", "samples_of")       # settings of [eval] that may grow in a finished evaluation
OF_RIGHT_TEXTS = ("similarity", "vendi", "vendi_m", "vendi_problems", "embed_cut")      # figures of an embedder


@dataclass(frozen=True)
class DiversityConfig:
    embedder: str = ""
    """sentence-transformers folder or hub name for the similarity of right answers, not necessarily that of the
    training; empty for none"""
    max_tokens: Annotated[int, ">= 0"] = 0
    """tokens of a text that are embedded; 0 for as many as it reads"""
    trust_remote_code: bool = False
    """run Python code that comes with the embedder's files"""


@dataclass(frozen=True)
class OutputConfig:
    dir: Annotated[str, "free"] = "runs/eval"
    """folder for a folder per model, with results.jsonl, config.toml and the samples"""
    workers: Annotated[int, ">= 1", "free"] = 2
    """grader processes per rank"""
    timeout_s: Annotated[float, "> 0"] = 5.0
    """an answer that takes longer to verify is wrong"""
    require_box: bool = True
    """an answer outside \\boxed{} is wrong; false lets math-verify look for one, as the published evaluation does"""


@dataclass(frozen=True)
class Config:
    model: ModelConfig
    data: DataConfig
    eval: EvalConfig
    reward: CorrectConfig
    diversity: DiversityConfig
    output: OutputConfig


# What a named protocol puts over the config file; the command line goes over both. "paper" is the evaluation for the
# published table (lighteval ed084813: arXiv:2505.09655, Open-RS); the request is in our words, eval.prompt takes others
REQUEST = ("Work out the problem below step by step, without detours. End with one line of the form\n"
           "Therefore, the final answer is: $\\boxed{ANSWER}$\nwhere ANSWER is the result alone.\n\n{problem}")
PROTOCOLS = {"paper": [
    "model.dtype=bfloat16", "eval.samples=1", "eval.samples_of={}", "eval.temperature=0.6", "eval.top_p=0.95",
    "eval.max_new_tokens=32768", "data.system=", "output.require_box=false", f"eval.prompt={json.dumps(REQUEST)}"]}


# ------------------------------------------------------------------------------------------------ statistics


def summarize(benchmark: str, samples: Iterable[dict]) -> dict:
    """The figures of one benchmark from its samples, dicts as `sample_problems` makes them, n for every problem."""
    groups = [sorted(group, key=lambda sample: sample["sample"]) for _, group in sorted(by_problem(samples).items())]
    n = len(groups[0])
    powers = [2**i for i in range(n.bit_length()) if 2**i <= n]
    ks = powers if powers[-1] == n else [*powers, n]
    counts = [sum(sample["correct"] for sample in group) for group in groups]
    flat = [sample for group in groups for sample in group]
    voted = all("vote" in sample for sample in flat)    # not with reward.correct
    votes = [[sample["vote"] for sample in group] for group in groups] if voted else []

    def share(key: str, value: object) -> float:
        return sum(sample[key] == value for sample in flat) / len(flat)

    record = {
        "benchmark": benchmark, "n": len(groups), "samples": n,
        "accuracy": sum(counts) / (n * len(groups)),
        "accuracy_se": standard_error([count / n for count in counts]),
        "accuracy_sd": deviation([sum(group[i]["correct"] for group in groups) / len(groups) for i in range(n)]),
        "pass_at_k": {str(k): sum(pass_at_k(n, c, k) for c in counts) / len(counts) for k in ks},
        "maj_at_k": {
            str(k): sum(maj_at_k(names, first_gold(group[0]["gold"]), k) for names, group in zip(votes, groups))
                     / len(groups) for k in ks * voted},
        "truncated": share("finish", "length"), "no_answer": share("answer", None) if voted else None,
        "timeouts": share("reason", "timeout"),
        "too_long": share("finish", "prompt"), "reasons": dict(Counter(sample["reason"] for sample in flat)),
        "length": mean(sample["length"] for sample in flat),
        "length_right": mean(sample["length"] for sample in flat if sample["correct"]),
        "length_max": max(sample["length"] for sample in flat),
        "distinct_answers": mean(len(set(names) - {None}) for names in votes),
    }
    if any("label" in sample for sample in flat):
        right = [[str(sample["label"]) for sample in group if sample["correct"]] for group in groups]
        enough = [effective_labels(labels[:STRATEGY_SAMPLES]) for labels in right if len(labels) >= STRATEGY_SAMPLES]
        pooled = [label for labels in right for label in labels]
        record |= {
            "effective_strategies": mean(enough),
            "effective_strategies_m": STRATEGY_SAMPLES, "effective_strategies_problems": len(enough),
            "distinct_strategies": mean(len(set(labels)) for labels in right),
            "effective_strategies_pooled": effective_labels(pooled) if pooled else None,
            "strategies": dict(Counter(pooled).most_common()),
            "labels": dict(Counter(str(sample["label"]) for sample in flat).most_common()),
        }
    return record


AVERAGED = ("accuracy", "truncated", "no_answer", "timeouts", "too_long", "length", "length_right", "distinct_answers",
            "effective_strategies", "distinct_strategies", "similarity", "vendi")


def with_average(records: Sequence[dict]) -> list[dict]:
    """The records of a policy's benchmarks as results.jsonl has them; after several, their average."""
    return [*records, {"model": records[0]["model"], **average(records)}] if len(records) > 1 else list(records)


def average(records: Sequence[dict]) -> dict:
    """The mean of several benchmarks, each with the same weight.

    Errors are those of independent benchmarks, and k go as far as all of them do.
    """
    shared = {key: [k for k in records[0][key] if all(k in record[key] for record in records)]
              for key in ("pass_at_k", "maj_at_k")}
    spread = [record["accuracy_sd"] for record in records]
    return {
        "benchmark": "average", "benchmarks": [record["benchmark"] for record in records],
        "n": sum(record["n"] for record in records),
        **{key: mean(record.get(key) for record in records) for key in AVERAGED},
        "accuracy_se": math.hypot(*(record["accuracy_se"] for record in records)) / len(records),
        "accuracy_sd": None if None in spread else math.hypot(*spread) / len(records),
        **{key: {k: mean(record[key][k] for record in records) for k in ks} for key, ks in shared.items()},
    }


def format_record(record: dict) -> str:
    """One line for people."""
    of = f"{len(record['benchmarks'])} benchmarks" if "benchmarks" in record else (
        f"avg@{record['samples']}, {record['n']} problems")
    line = f"{record['benchmark']}: accuracy {record['accuracy']:.3f} ± {record['accuracy_se']:.3f} ({of}"
    line += ")" if record["accuracy_sd"] is None else f"; sd over seeds {record['accuracy_sd']:.3f})"
    for name in ("pass", "maj"):
        line += " | " * (len(record[f"{name}_at_k"]) > 1) + " ".join(
            f"{name}@{k} {value:.3f}" for k, value in record[f"{name}_at_k"].items() if k != "1")
    line += f" | length {record['length']:.0f} | truncated {record['truncated']:.3f}"
    if record["no_answer"] is not None:
        line += f" | no answer {record['no_answer']:.3f} | timeouts {record['timeouts']:.3f}"
    if record["too_long"]:
        line += f" | prompt too long for the context {record['too_long']:.3f}"
    if record.get("effective_strategies") is not None and "samples" in record:
        line += (f" | effective strategies {record['effective_strategies']:.2f} (m={record['effective_strategies_m']}, "
                 f"{record['effective_strategies_problems']} of {record['n']} problems; pooled "
                 f"{record['effective_strategies_pooled']:.2f})")
    if record.get("distinct_strategies") is not None and "samples" in record:
        line += f" | different strategies {record['distinct_strategies']:.2f}"
    for key, name in (("similarity", "cosine of right answers"), ("vendi", f"Vendi score (m={VENDI_SAMPLES})")):
        line += "" if record.get(key) is None else f" | {name} {record[key]:.3f}"
    return line


# ------------------------------------------------------------------------------------------------ the work


def evaluate(model: Transformer, tokenizer, benchmark: str, data: DataConfig, config: EvalConfig,
             grader: Grader | OwnGrader) -> tuple[dict, list[dict]]:
    """(record, samples) of one benchmark."""
    name, source = benchmark_name(benchmark)
    config = settings_of(config, name)
    problems = load_problems(source, asked(config, data), gold=grader.reads_answers)
    sampler = eval_sampler(model, tokenizer, config, data)
    samples = sample_problems(sampler, tokenizer, problems, data, config, grader, desc=name)
    return summarize(name, samples), samples


def right_similarity(group: Sequence[dict], embedder: Embedder) -> tuple[int, float | None, float | None, int]:
    """(problem, mean cosine of two of its right answers, Vendi score of the first VENDI_SAMPLES of them, how many the
    embedder cut); None where too few."""
    texts = [sample["text"] for sample in group if sample["correct"]]
    if len(texts) < 2:
        return group[0]["problem"], None, None, 0
    # a call for each problem: another batch would round differently
    similarity_NN = cosine_similarity(embedder.encode(texts))
    cosine = (similarity_NN.sum().item() - len(texts)) / (len(texts) * (len(texts) - 1))
    vendi = vendi_score(similarity_NN[:VENDI_SAMPLES, :VENDI_SAMPLES]) if len(texts) >= VENDI_SAMPLES else None
    return group[0]["problem"], cosine, vendi, sum(embedder.cut(texts))


def diversity_figures(similar: Sequence[tuple[int, float | None, float | None, int]]) -> dict:
    """The figures of a benchmark from `right_similarity` of all its problems."""
    _, cosines, vendi, cut = zip(*sorted(similar))
    return {"similarity": mean(cosines), "vendi": mean(vendi), "vendi_m": VENDI_SAMPLES,
            "vendi_problems": sum(score is not None for score in vendi), "embed_cut": sum(cut)}


def identity_of(config: Config, folder: str, benchmarks: dict[str, list[dict]]) -> dict[str, str]:
    """SHA-256 of the policy's files, of each benchmark's problems as they are asked, and of the user's functions."""
    data = asked(config.eval, config.data)

    def known(row: dict) -> dict:
        more = len(columns_of(data.template)) > 1 or "prompt_messages" in row       # than the problem is asked
        fields = {key: row[key] for key in ("id", "problem", "answer")}
        return fields | ({"prompt": messages_of(row, data)} if more else {})

    problems = {name: checkpoint.identity_of_rows(map(known, rows)) for name, rows in benchmarks.items()}
    return {**checkpoint.identity_of_policy(folder), **problems, **checkpoint.identity_of_functions(config)}


def out_folder(config: Config) -> Path:
    return Path(config.output.dir) / config.model.path.strip("/.").replace("/", "-")


def samples_of(config: Config) -> dict[str, int]:
    """Samples per problem of each benchmark, by name."""
    names = [benchmark_name(benchmark)[0] for benchmark in config.eval.benchmarks]
    return {name: settings_of(config.eval, name).samples for name in names}


def check_growth(before: Config, now: Config) -> None:
    """ValueError unless `now` has all benchmarks and samples of `before`, and more only of what is finished."""
    out, asked_for = out_folder(now), samples_of(now)
    for name, begun in samples_of(before).items():
        n, more = max(begun, samples_in(out / f"{name}.samples.jsonl")), asked_for.get(name, 0)
        if more < n:
            raise ValueError(f"{out} holds an evaluation with {n} samples per problem of {name}, and now it is to have "
                             f"{more or 'none'}: it can only grow; change eval.benchmarks, eval.samples or "
                             "eval.samples_of back, or name another output.dir")
        if more > n and any(path.stat().st_size for path in (out / f"{name}.parts").glob("*.jsonl")):
            raise ValueError(f"{out} holds an evaluation of {name} that was interrupted: finish it with its {n} "
                             f"samples per problem before it gets {more}, or name another output.dir")


def claim(config: Config, benchmarks: dict[str, list[dict]]) -> None:
    """Writes config.toml and identity.json into the policy's folder; ValueError if it has samples made with others, or
    the policy cannot be used."""
    out, folder = out_folder(config), model_folder(config.model)
    check_room(config.eval, Geometry.from_folder(folder).context)
    weight_files(Path(folder))
    data = asked(config.eval, config.data)
    tokenizer = load_tokenizer(folder, data)
    for rows in benchmarks.values():
        check_template(tokenizer, rows, data)
    first = prompt_text(tokenizer, next(iter(benchmarks.values()))[0], data)
    print(f"{config.model.path} | the first prompt: {json.dumps(first, ensure_ascii=False)}")
    now = identity_of(config, folder, benchmarks)
    if any(path.stat().st_size for path in [*out.glob("*.jsonl"), *out.glob("*.parts/*.jsonl")]):
        old = load(Config, out / "config.toml")
        grow = [f"eval.{key}" for key in GROWING]       # and the files of model.path are known
        if changed := changes(old, config, ["model.path", *grow]):
            raise ValueError(f"{out} holds an evaluation with other settings ({changed}); name another output.dir or "
                             "change them back")
        check_growth(old, config)
        added = [name for name in benchmarks if name not in samples_of(old)]
        if not (out / "identity.json").exists():
            raise ValueError(f"{out} has no identity.json, so its samples come from report regrade or an evaluation "
                             "that cannot be continued; name another output.dir")
        before = json.loads((out / "identity.json").read_text(encoding="utf-8"))
        unknown = [name for name in now if ": " in name and name not in before]     # written by an earlier version
        if unknown:
            print(f"{out / 'identity.json'} does not have {', '.join(unknown)}: whether the evaluation began "
                  "with these files cannot be checked")
        known = {name: now[name] for name in now if name not in unknown + added}
        if changed := checkpoint.differences(before, known):
            raise ValueError(f"{out} holds an evaluation with other weights, problems or functions ({changed}); name "
                             "another output.dir")
    files.write(out / "config.toml", dump(config))
    files.write(out / "identity.json", json.dumps(now, indent=2) + "\n")


class Evaluator:
    """One policy on all benchmarks; every rank makes one and calls its methods together with the others."""

    def __init__(self, config: Config, benchmarks: dict[str, list[dict]], stop: Stop, rank: int, world: int,
                 device: torch.device):
        self.config, self.benchmarks, self.stop = config, benchmarks, stop
        self.rank, self.world, self.device = rank, world, device
        self.first, self.out, self.policy = rank == 0, out_folder(config), config.model.path

    def run(self) -> bool:
        """Evaluates what has not been yet and prints all; False if interrupted."""
        config, records = self.config, self.finished()
        checkpoint.barrier()                            # all have read them before the first rank writes more
        with self.stop.interruptible(f"start of {self.policy}"):
            self.load()
        if self.stop.any_rank():
            return False
        output = config.output
        with grader_of(config.reward.correct, output.workers, output.timeout_s, output.require_box) as grader:
            for name in self.benchmarks:
                settings, record = asdict(settings_of(config.eval, name)), records.get(name, {})
                if record.get("samples") == settings["samples"]:
                    # as of now, not as of when it was finished
                    grown = {key: settings[key] for key in GROWING}
                    records[name] = {**record, "settings": record.get("settings", {}) | grown}
                elif (record := self.benchmark(name, grader)) is not None:
                    records[name] = {"model": self.policy, **record, "settings": settings}
                else:
                    return False
                if self.first:                          # the others have no figures
                    self.show(records, name)
        self.say(f"written to {self.out}/")
        return True

    def load(self) -> None:
        """Policy, tokenizer and, if there is to be a similarity, the embedder."""
        folder, diversity = model_folder(self.config.model), self.config.diversity
        self.tokenizer = load_tokenizer(folder, self.config.data)
        self.model = Transformer.from_pretrained(folder, DTYPES[self.config.model.dtype], self.device)
        self.model.n_tokens = min(self.model.g.vocab, len(self.tokenizer))
        self.embedder = None
        if diversity.embedder:
            self.embedder = Embedder(diversity.embedder, diversity.max_tokens, diversity.trust_remote_code, self.device,
                                     section="diversity")

    def finished(self) -> dict[str, dict]:
        """The records in results.jsonl, by benchmark; some may have fewer samples than are asked for."""
        path, records = self.out / "results.jsonl", {}
        for where, record in read_jsonl(path) if path.exists() else ():
            if not (isinstance(record, dict) and "benchmarks" in record):           # the average
                require(record, RESULT, where, "a record of an evaluation; remove the file, and the same command makes "
                                               "it again from the samples")
                records[record["benchmark"]] = record
        return records

    def show(self, records: dict[str, dict], name: str) -> None:
        """Writes results.jsonl with all records so far, and their average after the last; prints the one of `name`."""
        written = [records[benchmark] for benchmark in self.benchmarks if benchmark in records]
        if name == list(self.benchmarks)[-1]:
            written = with_average(written)
        files.write_jsonl(self.out / "results.jsonl", written)
        for record in (records[name], *written[len(self.benchmarks):]):
            self.say(f"{self.policy} | {format_record(record)}")

    def say(self, text: str) -> None:
        if self.first:
            print(text, flush=True)

    def benchmark(self, name: str, grader: Grader) -> dict | None:
        """The record of one benchmark, with its samples in a file; None if interrupted."""
        stop, record, similar = self.stop, {}, []
        if stop.any_rank():
            return None
        places = self.places(name)
        with stop.interruptible(f"{self.policy}, {name}"):
            if places:
                self.sample(name, places, grader)
        if stop.any_rank():
            return None
        with stop.interruptible(f"{self.policy}, figures of {name}"):
            if self.first:
                record = self.summarize(name)
        if stop.any_rank():
            return None
        if self.embedder:
            with stop.interruptible(f"{self.policy}, similarity of {name}"):
                similar = self.similarities(name)
            if stop.any_rank():
                return None
            record |= diversity_figures(gather_over_ranks(similar))
        return record

    def paths(self, name: str) -> tuple[Path, Path, Path]:
        """Of a benchmark: folder of the parts, file of the problems collected from them, file of all samples."""
        parts = self.out / f"{name}.parts"
        return parts, parts / "kept.jsonl", self.out / f"{name}.samples.jsonl"

    def places(self, name: str) -> list[int]:
        """Places in a benchmark of the problems that this rank has to sample; collective."""
        rows, (parts, collected, final), done = self.benchmarks[name], self.paths(name), []
        n = settings_of(self.config.eval, name).samples
        have = samples_in(final) if self.first else 0
        if self.first and have != n:
            parts.mkdir(exist_ok=True)
            done = collect(parts, collected, n)
        if (have := int(max_over_ranks(have))) == n:
            return []
        done = set(gather_over_ranks(done))
        if have:
            self.say(f"{self.policy} | {name}: drawing {n - have} samples per problem in addition to {have}")
        if done:
            self.say(f"{self.policy} | {name}: continuing with {len(rows) - len(done)} of {len(rows)} problems")
        return [i for i in range(len(rows)) if i not in done][self.rank :: self.world]

    def sample(self, name: str, places: list[int], grader: Grader) -> None:
        """Samples and grades problems, some at a time, into this rank's part file."""
        config, rows = settings_of(self.config.eval, name), [self.benchmarks[name][i] for i in places]
        file = self.paths(name)[0] / f"rank{self.rank}.jsonl"
        sampler = eval_sampler(self.model, self.tokenizer, config, self.config.data)
        for groups in sample_groups(sampler, self.tokenizer, rows, self.config.data, config, grader, places, self.first,
                                    name, kept=self.kept(name, places)):
            append_jsonl(file, (sample for group in groups for sample in group))

    def kept(self, name: str, places: list[int]) -> Iterator[list[dict]]:
        """The samples of these problems that a finished evaluation with fewer has; none without one."""
        final, wanted = self.paths(name)[2], set(places)
        if not (have := samples_in(final)):
            return
        if (whole := sum(1 for _ in whole_problems(final, have))) != len(self.benchmarks[name]):
            raise ValueError(self.incomplete(name, whole))
        for group, _ in whole_problems(final, have):
            if group[0]["problem"] in wanted:
                yield group

    def incomplete(self, name: str, whole: int) -> str:
        return (f"{self.paths(name)[2]} has whole samples of {whole} of {len(self.benchmarks[name])} problems; remove "
                "it, and the same command makes it again")

    def summarize(self, name: str) -> dict:
        """The figures of a benchmark, from its samples, once they are in one file; ValueError if some are missing."""
        (parts, collected, final), total = self.paths(name), len(self.benchmarks[name])
        n = settings_of(self.config.eval, name).samples
        if samples_in(final) != n:
            if (whole := len(collect(parts, collected, n))) < total:
                raise ValueError(f"{collected} has {whole} of {total} problems, the others were not written; the same "
                                 "command continues")
            collected.rename(final)
        shutil.rmtree(parts, ignore_errors=True)        # a kill may have left it empty
        samples = [sample | {"text": None} for group, _ in whole_problems(final, n) for sample in group]
        if len(samples) != total * n:
            raise ValueError(self.incomplete(name, len(samples) // n))
        return summarize(name, samples)

    def similarities(self, name: str) -> list[tuple]:
        """`right_similarity` of this rank's share of a benchmark's problems."""
        groups = whole_problems(self.paths(name)[2], settings_of(self.config.eval, name).samples)
        return [right_similarity(group, self.embedder) for group, _ in groups
                if group[0]["problem"] % self.world == self.rank]


def parse(argv: list[str]) -> tuple[list[Config], dry_run.Request | None]:
    """The settings of each policy of the command line, and what --dry-run asks; ValueError for settings that do not go
    together."""
    def more(parser) -> None:
        parser.add_argument("--model", action="append", metavar="PATH",
                            help="policy to evaluate instead of model.path; may be repeated")
        parser.add_argument("--protocol", choices=list(PROTOCOLS),
                            help="settings of a published evaluation, over the file's and under those given here")
        dry_run.add_options(parser)

    args = parse_args(Config, argv, __doc__, more)
    overrides = [*PROTOCOLS.get(args.protocol, []), *args.overrides]
    paths = dict.fromkeys(normpath(path) if path and Path(path).is_dir() else path for path in args.model or [])
    configs = [load(Config, args.config, [*overrides, f"model.path={json.dumps(path)}"]) for path in paths]
    configs = configs or [load(Config, args.config, overrides)]
    if not configs[0].eval.benchmarks:
        raise ValueError("eval.benchmarks is empty: name at least one file or hub data set")
    folders: dict[Path, Config] = {}
    for config in configs:
        if (other := folders.setdefault(out_folder(config), config)) is not config:
            raise ValueError(f"{other.model.path} and {config.model.path} would both be evaluated in "
                             f"{out_folder(config)}; evaluate them with an output.dir each")
    return configs, dry_run.request(args)


def plan(configs: list[Config], request: dry_run.Request) -> int:
    """What --dry-run prints; nothing is written. ValueError, after all of it, with what stands in the way."""
    findings, first, problems, lines = preflight.Findings(), configs[0], {}, []
    data = asked(first.eval, first.data)
    missing = findings.warnings if request.gpu else findings.problems       # another machine may well have it
    with findings.collecting(missing):
        check_eval(first.eval, first.data, first.reward.correct)
        problems = load_benchmarks(first.eval.benchmarks, data, [], gold=not first.reward.correct)
    for config in configs:
        prompt, longest, rows = 0.0, 0, [row for rows in problems.values() for row in rows]
        with findings.collecting(missing):
            tokenizer = load_tokenizer(model_folder(config.model, SMALL_FILES), config.data)
            if Path(config.model.path).is_dir():
                weight_files(Path(config.model.path))
            if rows:
                check_template(tokenizer, rows, data)
                line, prompt, longest = dry_run.prompt_figures(tokenizer, rows, data)
                lines.append(f"{config.model.path} | {line}")
        with findings.collecting():
            model = dry_run.network_or_known(config.model, findings)
            check_room(config.eval, model.g.context)
            if not request.gpu:
                preflight.evaluation(config, findings)
            counts = {name: len(rows) for name, rows in problems.items()}
            lines += dry_run.evaluation(config, model, request, prompt, longest or dry_run.PROMPT_TOKENS, counts,
                                        findings)
    return dry_run.tell(lines, findings)


def evaluate_all(configs: list[Config]) -> int:
    """Evaluates policies that differ in model.path; returns 0, or 128 + signal number after an interruption."""
    first = configs[0]
    check_eval(first.eval, first.data, first.reward.correct)
    findings = preflight.Findings()
    for config in configs:
        preflight.evaluation(config, findings)
        model_folder(config.model)
    findings.stop(is_first_rank())
    stop, skipped = Stop(f"output.dir = {first.output.dir!r}", LESS_EVAL_MEMORY), []
    with stop.users_errors(), ExitStack() as locks:
        problems = load_benchmarks(first.eval.benchmarks, asked(first.eval, first.data), skipped,
                                   gold=not first.reward.correct)
        for config in configs if is_first_rank() else ():
            locks.enter_context(files.lock(out_folder(config), "output.dir"))
            claim(config, problems)
        rank, world, device = start_ranks()
        if rank == 0:
            print(", ".join(f"{name}: {len(rows)} problems" for name, rows in problems.items())
                  + (f"; rows left out as unusable: {len(skipped)} ({skipped[0]})" if skipped else ""), flush=True)
            if remark := greedy_remark(first.eval):
                print(remark, flush=True)
            for name, rows in problems.items():
                for remark in remarks(rows):
                    print(f"{name}: {remark}", flush=True)
        stop.know_processes()
        for config in configs:
            if not Evaluator(config, problems, stop, rank, world, device).run():
                if rank == 0:
                    print("interrupted; the same command continues", file=sys.stderr)
                return 128 + int(max_over_ranks(stop.signum))
    return 0


def main(argv: list[str]) -> int:
    configs, request = parse(argv)
    if request:
        return plan(configs, request) if is_first_rank() else 0
    return evaluate_all(configs)


if __name__ == "__main__":
    run_main(main)
