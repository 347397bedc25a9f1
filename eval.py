"""Accuracy, pass@k, maj@k and diversity of policies on problems with known answers.

    torchrun eval.py --config configs/eval_math.toml --model PATH [--model PATH ...] [--protocol paper] [section.key=value ...]

Every problem is sampled n times; all ranks share the problems. Reported per benchmark and on average: avg@n with its standard error over
problems and its standard deviation over seeds, pass@k by the unbiased estimator (arXiv:2107.03374), maj@k, how answers fail, and the diversity
of right answers. Every sample is kept as it is made (eval_samples.py), and an evaluation that was interrupted, however, goes on where it stopped. The
trainer uses the same functions for its own evaluations. Policies are compared by
`python -m report compare`.
"""
import json
import math
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from os.path import normpath
from pathlib import Path
from typing import Annotated

import torch

import checkpoint
import files
import identity
from config import changes, dump, load, parse_args
from data import DataConfig, benchmark_name, columns_of, first_gold, load_benchmarks, load_problems, remarks
from embedder import Embedder
from eval_samples import (LESS_EVAL_MEMORY, EvalConfig, OwnGrader, asked, by_problem, check_eval, check_room, collect,
                          eval_sampler, grader_of, sample_groups, sample_problems, settings_of, whole_problems)
from files import json_lines, read_jsonl, require
from grader import Grader
from metrics import deviation, effective_labels, maj_at_k, mean, pass_at_k, standard_error, vendi_score
from model import DTYPES, Geometry, ModelConfig, Transformer, weight_files
from prompts import check_template, load_tokenizer, messages_of, model_folder, prompt_text
from ranks import Stop, gather_over_ranks, is_first_rank, max_over_ranks, run_main, start_ranks
from reward import CorrectConfig, cosine_similarity

# N completions

STRATEGY_SAMPLES = 16                                   # right answers per problem behind "effective strategies": the estimate depends on it
VENDI_SAMPLES = 4                                       # and behind the Vendi score
RESULT = {"model": str, "benchmark": str, "n": int, "samples": int, "accuracy": (int, float), "accuracy_se": (int, float),
          "pass_at_k": dict}                            # what readers need of a record in results.jsonl
OF_RIGHT_TEXTS = ("similarity", "vendi", "vendi_m", "vendi_problems", "embed_cut")      # figures of an embedder


@dataclass(frozen=True)
class DiversityConfig:
    embedder: str = ""
    """sentence-transformers folder or hub name for the similarity of right answers, not necessarily that of the training; empty for none"""
    max_tokens: Annotated[int, ">= 0"] = 0
    """tokens of a text that are embedded; 0 for as many as it reads"""
    trust_remote_code: bool = False
    """run Python code that comes with the embedder's files"""


@dataclass(frozen=True)
class OutputConfig:
    dir: str = "runs/eval"
    """folder for a folder per model, with results.jsonl, config.toml and the samples"""
    workers: Annotated[int, ">= 1"] = 2
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


# What a named protocol puts over the config file; the command line goes over both. "paper" is the evaluation behind the published table (lighteval
# ed084813: arXiv:2505.09655, Open-RS); the request is in our words, eval.prompt takes any other.
PROTOCOLS = {"paper": [
    "model.dtype=bfloat16", "eval.samples=1", "eval.samples_of={}", "eval.temperature=0.6", "eval.top_p=0.95", "eval.max_new_tokens=32768", "data.system=",
    "output.require_box=false",
    "eval.prompt=" + json.dumps("Work out the problem below step by step, without detours. End with one line of the form\n"
                                "Therefore, the final answer is: $\\boxed{ANSWER}$\nwhere ANSWER is the result alone.\n\n{problem}")]}


# ------------------------------------------------------------------------------------------------ statistics


def summarize(benchmark: str, samples: Iterable[dict]) -> dict:
    """The figures of one benchmark from its samples (dicts as `sample_problems` makes them), n the same for every problem."""
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
        "maj_at_k": {str(k): sum(maj_at_k(names, first_gold(group[0]["gold"]), k)
                                 for names, group in zip(votes, groups)) / len(groups) for k in ks * voted},
        "truncated": share("finish", "length"), "no_answer": share("answer", None) if voted else None,
        "timeouts": share("reason", "timeout"),
        "too_long": share("finish", "prompt"), "reasons": dict(Counter(sample["reason"] for sample in flat)),
        "length": mean(sample["length"] for sample in flat), "length_right": mean(sample["length"] for sample in flat if sample["correct"]),
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
            "effective_strategies_pooled": effective_labels(pooled) if pooled else None,
            "strategies": dict(Counter(pooled).most_common()),
        }
    return record


AVERAGED = ("accuracy", "truncated", "no_answer", "timeouts", "too_long", "length", "length_right", "distinct_answers", "effective_strategies", "similarity", "vendi")


def with_average(records: Sequence[dict]) -> list[dict]:
    """The records of a policy's benchmarks as results.jsonl has them: behind several, their average."""
    return [*records, {"model": records[0]["model"], **average(records)}] if len(records) > 1 else list(records)


def average(records: Sequence[dict]) -> dict:
    """The mean of several benchmarks, each with the same weight; errors are those of independent benchmarks, and k go as far as all of them do."""
    shared = {key: [k for k in records[0][key] if all(k in record[key] for record in records)] for key in ("pass_at_k", "maj_at_k")}
    spread = [record["accuracy_sd"] for record in records]
    return {
        "benchmark": "average", "benchmarks": [record["benchmark"] for record in records], "n": sum(record["n"] for record in records),
        **{key: mean(record.get(key) for record in records) for key in AVERAGED},
        "accuracy_se": math.hypot(*(record["accuracy_se"] for record in records)) / len(records),
        "accuracy_sd": None if None in spread else math.hypot(*spread) / len(records),
        **{key: {k: mean(record[key][k] for record in records) for k in ks} for key, ks in shared.items()},
    }


def format_record(record: dict) -> str:
    """One line for people."""
    of = f"{len(record['benchmarks'])} benchmarks" if "benchmarks" in record else f"avg@{record['samples']}, {record['n']} problems"
    line = f"{record['benchmark']}: accuracy {record['accuracy']:.3f} ± {record['accuracy_se']:.3f} ({of}"
    line += ")" if record["accuracy_sd"] is None else f"; sd over seeds {record['accuracy_sd']:.3f})"
    for name in ("pass", "maj"):
        line += " | " * (len(record[f"{name}_at_k"]) > 1) + " ".join(f"{name}@{k} {value:.3f}" for k, value in record[f"{name}_at_k"].items() if k != "1")
    line += f" | length {record['length']:.0f} | truncated {record['truncated']:.3f}"
    if record["no_answer"] is not None:
        line += f" | no answer {record['no_answer']:.3f} | timeouts {record['timeouts']:.3f}"
    if record["too_long"]:
        line += f" | prompt too long for the context {record['too_long']:.3f}"
    if record.get("effective_strategies") is not None and "samples" in record:
        line += (f" | effective strategies {record['effective_strategies']:.2f} (m={record['effective_strategies_m']}, "
                 f"{record['effective_strategies_problems']} of {record['n']} problems; pooled {record['effective_strategies_pooled']:.2f})")
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
    """(problem, mean cosine of two of its right answers, Vendi score of the first VENDI_SAMPLES of them, how many the embedder cut); None where too few."""
    texts = [sample["text"] for sample in group if sample["correct"]]
    if len(texts) < 2:
        return group[0]["problem"], None, None, 0
    similarity_NN = cosine_similarity(embedder.encode(texts))       # a call for each problem: another batch would round differently
    cosine = (similarity_NN.sum().item() - len(texts)) / (len(texts) * (len(texts) - 1))
    vendi = vendi_score(similarity_NN[:VENDI_SAMPLES, :VENDI_SAMPLES]) if len(texts) >= VENDI_SAMPLES else None
    return group[0]["problem"], cosine, vendi, sum(embedder.cut(texts))


def identity_of(config: Config, folder: str, benchmarks: dict[str, list[dict]]) -> dict[str, str]:
    """SHA-256 of the policy's files, of each benchmark's problems as they are asked, and of the user's functions."""
    data = asked(config.eval, config.data)

    def known(row: dict) -> dict:
        more = len(columns_of(data.template)) > 1 or "prompt_messages" in row       # than the problem is asked
        return {key: row[key] for key in ("id", "problem", "answer")} | ({"prompt": messages_of(row, data)} if more else {})

    problems = {name: identity.of_rows(map(known, rows)) for name, rows in benchmarks.items()}
    return {**identity.of_policy(folder), **problems, **identity.of_functions(config)}


def out_folder(config: Config) -> Path:
    return Path(config.output.dir) / config.model.path.strip("/.").replace("/", "-")


MAY_CHANGE = ("model.path", "eval.slots", "output.dir", "output.workers")     # model.path: the folder is the same one's, and identity.json knows its files


def claim(config: Config, benchmarks: dict[str, list[dict]]) -> None:
    """Writes config.toml and identity.json into the policy's folder; ValueError if it has samples made with others, or the policy cannot be used."""
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
        if changed := changes(load(Config, out / "config.toml"), config, MAY_CHANGE):
            raise ValueError(f"{out} holds an evaluation with other settings ({changed}); name another output.dir or change them back")
        before = json.loads((out / "identity.json").read_text(encoding="utf-8"))
        unknown = [name for name in now if ": " in name and name not in before]     # written by an earlier version
        if unknown:
            print(f"{out / 'identity.json'} does not have {', '.join(unknown)}: whether the evaluation began with "
                  "these files cannot be checked")
        if changed := identity.differences(before, {name: now[name] for name in now if name not in unknown}):
            raise ValueError(f"{out} holds an evaluation with other weights, problems or functions ({changed}); name "
                             "another output.dir")
    files.write(out / "config.toml", dump(config))
    files.write(out / "identity.json", json.dumps(now, indent=2) + "\n")


class Evaluator:
    """One policy on all benchmarks; every rank makes one and calls its methods together with the others."""

    def __init__(self, config: Config, benchmarks: dict[str, list[dict]], stop: Stop, rank: int, world: int, device: torch.device):
        self.config, self.benchmarks, self.stop, self.rank, self.world = config, benchmarks, stop, rank, world
        self.out, folder = out_folder(config), model_folder(config.model)
        with stop.interruptible(f"start of {config.model.path}"):
            self.tokenizer = load_tokenizer(folder, config.data)
            self.model = Transformer.from_pretrained(folder, DTYPES[config.model.dtype], device)
            self.model.n_tokens = min(self.model.g.vocab, len(self.tokenizer))
            diversity = config.diversity
            self.embedder = diversity.embedder and Embedder(diversity.embedder, diversity.max_tokens, diversity.trust_remote_code, device, section="diversity")
        self.interrupted = stop.any_rank()

    def run(self) -> bool:
        """Evaluates what has not been yet and prints all; False if interrupted."""
        results, last, records = self.out / "results.jsonl", list(self.benchmarks)[-1], {}
        for where, record in read_jsonl(results) if results.exists() else ():
            if not (isinstance(record, dict) and "benchmarks" in record):           # the average
                require(record, RESULT, where, "a record of an evaluation; remove the file, and the same command makes it again from the samples")
                records[record["benchmark"]] = record
        checkpoint.barrier()                            # all have read them before the first rank writes more
        output = self.config.output
        with grader_of(self.config.reward.correct, output.workers, output.timeout_s, output.require_box) as grader:
            for name in self.benchmarks:
                if name not in records:
                    if (record := self.benchmark(name, grader)) is None:
                        return False
                    records[name] = {"model": self.config.model.path, **record, "settings": asdict(settings_of(self.config.eval, name))}
                if self.rank == 0:                      # the others have no figures
                    written = list(records.values()) if name != last else with_average(list(records.values()))
                    files.write_jsonl(results, written)
                    for record in (records[name], *written[len(records):]):
                        print(f"{self.config.model.path} | {format_record(record)}", flush=True)
        if self.rank == 0:
            print(f"written to {self.out}/")
        return True

    def benchmark(self, name: str, grader: Grader) -> dict | None:
        """The record of one benchmark, with its samples in a file; None if interrupted."""
        if self.stop.any_rank():
            return None
        config, rows, first = settings_of(self.config.eval, name), self.benchmarks[name], self.rank == 0
        parts, final = self.out / f"{name}.parts", self.out / f"{name}.samples.jsonl"
        done = []
        kept = parts / "kept.jsonl"
        if first and not final.exists():
            parts.mkdir(exist_ok=True)
            done = collect(parts, kept, config.samples)
        complete = max_over_ranks(first and final.exists())
        done = set(gather_over_ranks(done))
        mine = [] if complete else [i for i in range(len(rows)) if i not in done][self.rank :: self.world]
        if first and done:
            print(f"{self.config.model.path} | {name}: continuing with {len(rows) - len(done)} of {len(rows)} problems", flush=True)
        with self.stop.interruptible(f"{self.config.model.path}, {name}"):
            if mine:
                with open(parts / f"rank{self.rank}.jsonl", "ab") as file:
                    for groups in sample_groups(eval_sampler(self.model, self.tokenizer, config, self.config.data), self.tokenizer, [rows[i] for i in mine], self.config.data, config,
                                                grader, mine, first, name):
                        file.write(json_lines(sample for group in groups for sample in group))
                        file.flush()
        if self.stop.any_rank():
            return None
        record, similar = {}, []
        with self.stop.interruptible(f"{self.config.model.path}, figures of {name}"):
            if first:
                if not complete:
                    if len(there := collect(parts, kept, config.samples)) < len(rows):
                        raise ValueError(f"{kept} has {len(there)} of {len(rows)} problems, the others were not written; the same command continues")
                    kept.rename(final)
                shutil.rmtree(parts, ignore_errors=True)        # a kill may have left it empty
                samples = [sample | {"text": None} for group, _ in whole_problems(final, config.samples) for sample in group]
                if len(samples) != len(rows) * config.samples:
                    raise ValueError(f"{final} has whole samples of {len(samples) // config.samples} of {len(rows)} problems; remove it, and the same command makes it again")
                record = summarize(name, samples)
        if self.stop.any_rank():
            return None
        if self.embedder:
            with self.stop.interruptible(f"{self.config.model.path}, similarity of {name}"):
                similar = [right_similarity(group, self.embedder) for group, _ in whole_problems(final, config.samples)
                           if group[0]["problem"] % self.world == self.rank]
            if self.stop.any_rank():
                return None
            _, cosines, vendi, cut = zip(*sorted(gather_over_ranks(similar)))
            record |= {"similarity": mean(cosines), "vendi": mean(vendi), "vendi_m": VENDI_SAMPLES, "vendi_problems": sum(x is not None for x in vendi), "embed_cut": sum(cut)}
        return record


def main(argv: list[str]) -> int:
    def more(parser) -> None:
        parser.add_argument("--model", action="append", metavar="PATH", help="policy to evaluate instead of model.path; may be repeated")
        parser.add_argument("--protocol", choices=list(PROTOCOLS), help="settings of a published evaluation, over the file's and under those given here")

    args = parse_args(Config, argv, __doc__, more)
    overrides = [*PROTOCOLS.get(args.protocol, []), *args.overrides]
    paths = dict.fromkeys(normpath(path) if path and Path(path).is_dir() else path for path in args.model or [])
    configs = [load(Config, args.config, [*overrides, f"model.path={json.dumps(path)}"]) for path in paths] or [load(Config, args.config, overrides)]
    config = configs[0]
    if not config.eval.benchmarks:
        raise ValueError("eval.benchmarks is empty: name at least one file or hub data set")
    check_eval(config.eval, config.data, config.reward.correct)
    folders: dict[Path, Config] = {}
    for each in configs:
        model_folder(each.model)
        if (other := folders.setdefault(out_folder(each), each)) is not each:
            raise ValueError(f"{other.model.path} and {each.model.path} would both be evaluated in {out_folder(each)}; evaluate them with an output.dir each")
    stop, skipped = Stop(f"output.dir = {config.output.dir!r}", LESS_EVAL_MEMORY), []
    with stop.users_errors():
        benchmarks = load_benchmarks(config.eval.benchmarks, asked(config.eval, config.data), skipped,
                                     gold=not config.reward.correct)
        with ExitStack() as locks:
            for each in configs if is_first_rank() else ():
                locks.enter_context(files.lock(out_folder(each), "output.dir"))
                claim(each, benchmarks)
            rank, world, device = start_ranks("float32")
            if rank == 0:
                print(", ".join(f"{name}: {len(rows)} problems" for name, rows in benchmarks.items())
                      + (f"; rows left out as unusable: {len(skipped)} ({skipped[0]})" if skipped else ""), flush=True)
                for name, rows in benchmarks.items():
                    for remark in remarks(rows):
                        print(f"{name}: {remark}", flush=True)
            stop.know_processes()
            for each in configs:
                if not run(each, benchmarks, stop, rank, world, device):
                    if rank == 0:
                        print("interrupted; the same command continues", file=sys.stderr)
                    return 128 + int(max_over_ranks(stop.signum))
    return 0


def run(config: Config, benchmarks: dict[str, list[dict]], stop: Stop, rank: int, world: int, device: torch.device) -> bool:
    """Evaluates one policy; False if interrupted."""
    evaluator = Evaluator(config, benchmarks, stop, rank, world, device)
    return not evaluator.interrupted and evaluator.run()


if __name__ == "__main__":
    run_main(main)
