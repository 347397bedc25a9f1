"""Trains a policy with GRPO, Dr. GRPO or DAPO's loss, with or without Diversity-aware Reward Adjustment (DRA).

    torchrun dra_grpo.py --config configs/tiny.toml [section.key=value ...]
    python dra_grpo.py --help                               every key with type, default and a sentence
    python dra_grpo.py --config FILE --dry-run              memory, time and cost, before anything is loaded (plan/)

One step (`Trainer.step`): prompts -> G completions each (sampler.py) -> grades, embeddings, SMI, adjusted rewards,
advantages (reward.py) -> clipped policy gradient with optional KL penalty (learner.py) -> sampler.load_weights.
Data order and random numbers are functions of (seed, step, position), so whatever ends a run, the same command
continues it as if it had never stopped.
"""
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, NamedTuple, TextIO

import numpy as np
import torch
from tqdm import tqdm

import checkpoint
import files
from config import changes, dump, import_function, load, parse_args
from data import DataConfig, check_source, load_benchmarks, load_problems, remarks
from embedder import Embedder, PolicyEmbedder
from eval import format_record, summarize
from eval_samples import (LESS_EVAL_MEMORY, EvalConfig, asked, check_eval, check_room, eval_sampler, grader_of,
                          greedy_remark, labeller, sample_problems, settings_of)
from learner import Clock, Learner, LearnerConfig, Row, lr_at, rows_in_loss
from metrics import Trackers, before_and_after, check_trackers, group_figures, noise_note, step_line
from model import DTYPES, Geometry, ModelConfig, Transformer, weight_files
from plan import dry_run, preflight
from plan.memory import peak_gb
from prompts import (SMALL_FILES, check_template, decode, load_tokenizer, model_folder, opening, prompt_text,
                     prompt_tokens, read_files, short_enough, stop_ids, write_files)
from ranks import Stop, full_weights, gather_over_ranks, is_first_rank, max_over_ranks, run_main, start_ranks
from reward import (OPTIONS, DraConfig, RewardConfig, RewardFunction, Rewarder, Scores, dra_advantages,
                    reward_function)
from sampler import Completion, Sampler, SamplerConfig

# P prompts, G completions each, N = P*G completions

# ------------------------------------------------------------------------------------------------ settings


@dataclass(frozen=True)
class TrainDataConfig(DataConfig):
    train: str | list[str] = ""
    """JSONL, JSON or parquet file with a problem and an answer per row, a pattern or a list of such files, or
    hub:owner/name[/config][:split]"""
    max_prompt_tokens: Annotated[int, ">= 1"] = 512
    """problems with a longer prompt are left out and counted"""
    prompts_per_step: Annotated[int, ">= 1"] = 8
    """prompts in one step, over all ranks"""


@dataclass(frozen=True)
class TrainEvalConfig(EvalConfig):
    every: Annotated[int, ">= 0"] = 0
    """evaluate every so many steps, besides before the first and after the last; 0 for those two only"""


@dataclass(frozen=True)
class RunConfig:
    dir: Annotated[str, "free"] = ""
    """folder for all that the run writes, by default runs/NAME for NAME.toml; the same command continues a run in it"""
    seed: int = 0
    """seed of data order and completions"""
    steps: Annotated[int, ">= 1", "free"] = 500
    """training steps"""
    save_every: Annotated[int, ">= 1", "free"] = 50
    """steps between checkpoints"""
    keep: Annotated[int, ">= 1", "free"] = 2
    """newest checkpoints kept"""
    resume: Annotated[bool, "free"] = True
    """continue the run in run.dir; false refuses a folder that already holds one"""
    trackers: Annotated[list[str], "free"] = field(default_factory=list)
    """where metrics go besides metrics.jsonl: "tensorboard" (files in run.dir), "wandb" (as WANDB_* of the environment
    say), or "path.py:function" called with each record of it"""


@dataclass(frozen=True)
class Config:
    model: ModelConfig
    data: TrainDataConfig
    sampler: SamplerConfig
    reward: RewardConfig
    dra: DraConfig
    learner: LearnerConfig
    eval: Annotated[TrainEvalConfig, "free"]            # evaluations do not disturb training
    run: RunConfig


def check(config: Config, world: int) -> None:
    """ValueError for whatever can be known to be wrong before anything is loaded."""
    check_files(config)
    check_settings(config, world)


def check_files(config: Config) -> None:
    """ValueError for problems and functions that are not where the settings say."""
    check_source("data.train", config.data.train)
    check_eval(config.eval, config.data, config.reward.correct)


def check_settings(config: Config, world: int) -> None:
    """ValueError for settings that do not go together or not with what is in run.dir."""
    if config.data.prompts_per_step < world:
        raise ValueError(f"data.prompts_per_step = {config.data.prompts_per_step} is less than one prompt for each of "
                         f"{world} ranks")
    if not config.reward.functions:
        raise ValueError("reward.functions is empty; name at least one, such as {accuracy = 1.0}")
    reward_functions(config.reward)
    check_dra(config.dra)
    check_trackers(config.run.trackers)
    if not config.run.resume and (Path(config.run.dir) / "metrics.jsonl").exists():
        raise ValueError(f"run.dir = {config.run.dir!r} already holds a run and run.resume is false; name another "
                         "folder")
    if (Path(config.run.dir) / "config.toml").exists():
        check_unchanged(config, Path(config.run.dir) / "config.toml")
    if Path(config.model.path).is_dir():
        context = Geometry.from_folder(config.model.path).context
        if config.data.max_prompt_tokens + config.sampler.max_new_tokens > context:
            raise ValueError(f"data.max_prompt_tokens = {config.data.max_prompt_tokens} and sampler.max_new_tokens = "
                             f"{config.sampler.max_new_tokens} exceed the model's context of {context}; lower one of "
                             "them")
        if config.eval.benchmarks:
            check_room(config.eval, context)


def check_dra(dra: DraConfig) -> None:
    """ValueError for options that exclude each other, a missing embedder's folder and a hook that cannot be read."""
    if dra.enabled and dra.embedder.startswith((".", "/")) and not Path(dra.embedder).is_dir():
        raise ValueError(f"dra.embedder = {dra.embedder!r} does not exist; name a sentence-transformers folder, a hub "
                         'name, or "policy"')
    if dra.enabled and (dra.embedder, dra.text) == ("policy", "answer"):
        raise ValueError('dra.embedder = "policy" reads the tokens as they were sampled, and an answer has none of its '
                         'own; use dra.text = "completion" or another embedder')
    if dra.enabled:                                     # the refusals of reward.py, with the keys they name
        dra_advantages(torch.ones(2), torch.eye(2), torch.ones(2), **{name: getattr(dra, name) for name in OPTIONS})
    if dra.advantages and (dra.weights or dra.apply == "advantage"):
        raise ValueError(f"dra.advantages = {dra.advantages!r} takes the place of dra.weights = {dra.weights!r} and "
                         f"dra.apply = {dra.apply!r}; leave them out")
    for key in ("weights", "advantages"):
        hook_of(dra, key)


def hook_of(dra: DraConfig, key: str) -> Callable | None:
    """The function that `dra.weights` or `dra.advantages` names."""
    name = getattr(dra, key)
    return import_function(f"dra.{key}", name) if name else None


def check_unchanged(config: Config, saved: Path) -> None:
    """ValueError listing what differs from a run's saved settings, but for keys that do not change its course."""
    if changed := changes(load(Config, saved), config):
        raise ValueError(f"run.dir = {config.run.dir!r} holds a run with other settings ({changed}); name another "
                         "run.dir or change them back")


def reward_functions(config: RewardConfig) -> dict[str, tuple[RewardFunction, float]]:
    """The functions that `reward.functions` names, ours and those of users, with their weights."""
    return {name: (import_function("reward.functions", name) if ":" in name else reward_function(name, config), weight)
            for name, weight in config.functions.items()}


def advantage_scale(config: Config) -> str:
    """How `group_advantages` divides: as `reward.advantage` says or, where that is auto, as the loss wants it."""
    auto = "none" if config.learner.loss == "dr_grpo" else "std"
    return auto if config.reward.advantage == "auto" else config.reward.advantage


# ------------------------------------------------------------------------------------------------ data order, records


def prompts_for_step(seed: int, step: int, rank: int, world: int, rows: int, per_step: int) -> list[tuple[int, int]]:
    """(position in the step's global list, problem) of this rank's prompts; a pure function: no data state to save.

    Each epoch is a fresh permutation of the `rows` problems; rank r takes positions r, r + world, ...
    """
    epochs = {}
    pairs = []
    for position in range(rank, per_step, world):
        epoch, place = divmod(step * per_step + position, rows)
        if epoch not in epochs:
            epochs[epoch] = np.random.default_rng((seed, epoch)).permutation(rows)
        pairs.append((position, int(epochs[epoch][place])))
    return pairs


def run_record(config: Config, world: int, device: torch.device, step: int, prompt: str) -> dict:
    """What a reader of metrics.jsonl needs to know about the run.

    `prompt` is the first problem as the policy gets it.
    """
    try:
        git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True,
                             text=True).stdout
    except FileNotFoundError:                           # no git on this machine
        git = ""
    return {"kind": "run", "step": step, "config": asdict(config), "prompt": prompt, "argv": sys.argv,
            "git": git.strip() or None, "torch": torch.__version__, "python": sys.version.split()[0], "world": world,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")}


def sample_records(step: int, places: Sequence[tuple[int, int]], problems: Sequence[dict],
                   completions: Sequence[Completion], texts: Sequence[str], scores: Scores,
                   labels: Sequence[str | None]) -> list[dict]:
    """One record per group for samples.jsonl; `completions`, `texts` and `labels` are flat, group by group."""
    G = scores.raw.shape[1]
    flat = [{"text": text, "length": len(completion.tokens), "finish": completion.finish, **scores.of(i // G, i % G)}
            for i, (text, completion) in enumerate(zip(texts, completions))]
    for completion, label in zip(flat, labels):
        completion["label"] = label
    return [{"step": step, "position": position, "row": row, "id": problem["id"], "problem": problem["problem"],
             "answer": problem["answer"], "similarity": scores.similarity[p], "completions": flat[p * G : (p + 1) * G]}
            for p, ((position, row), problem) in enumerate(zip(places, problems))]


def train_record(step: int, records: list[dict], figures: dict, scores: Scores, clock: Clock) -> dict:
    """A step's record for metrics.jsonl from the sample records of all ranks and the learner's figures; collective."""
    record = {"kind": "train", "step": step, **group_figures(records), **figures, **scores.seconds, **clock.seconds}
    return record | {"tokens_per_s": record["tokens"] / (clock.last - clock.start),
                     "peak_gb": max_over_ranks(peak_gb(clock.device))}


class Inputs(NamedTuple):
    """What a run reads before it loads weights."""
    folder: str                                         # of the policy
    tokenizer: object
    problems: list[dict]                                # all of data.train
    fitting: list[int]                                  # those whose prompt is short enough
    benchmarks: dict[str, list[dict]]
    skipped: list[str]                                  # rows that cannot be used, in words


def read_inputs(config: Config, folder: str) -> Inputs:
    """Tokenizer, problems and benchmarks; ValueError where they do not go together."""
    skipped, gold, question = [], not config.reward.correct, asked(config.eval, config.data)
    tokenizer = load_tokenizer(folder, config.data)
    problems = load_problems(config.data.train, config.data, skipped, gold)
    benchmarks = load_benchmarks(config.eval.benchmarks, question, skipped, gold)
    check_template(tokenizer, problems, config.data)
    for benchmark in benchmarks.values():
        check_template(tokenizer, benchmark, question)
    fitting = short_enough(tokenizer, problems, config.data, config.data.max_prompt_tokens)
    if not fitting:
        raise ValueError(f"data.train: all {len(problems)} prompts exceed data.max_prompt_tokens = "
                         f"{config.data.max_prompt_tokens}")
    return Inputs(folder, tokenizer, problems, fitting, benchmarks, skipped)


def remarks_on(inputs: Inputs, config: Config) -> list[str]:
    """Lines for people about problems and benchmarks."""
    left_out, skipped = len(inputs.problems) - len(inputs.fitting), inputs.skipped
    lines = [f"{len(inputs.fitting)} training problems"
             + (f" ({left_out} left out: prompt too long)" if left_out else "")]
    if skipped:
        lines.append(f"rows left out as unusable: {len(skipped)} ({skipped[0]})")
    lines += [f"data.train: {remark}" for remark in remarks(inputs.problems)]
    greedy = greedy_remark(config.eval) if inputs.benchmarks else ""
    return lines + [greedy] * bool(greedy)


# ------------------------------------------------------------------------------------------------ the run


class Trainer:
    """A training run on one rank; every rank makes one and calls its methods together with the others."""

    def __init__(self, config: Config, stop: Stop):
        """Loads everything, from the newest intact checkpoint if there is one; nothing is written before `claim`.

        Raises ValueError for what the user has to fix.
        """
        self.config, self.stop, self.run_dir = config, stop, Path(config.run.dir)
        self.metrics_path, self.samples_path = self.run_dir / "metrics.jsonl", self.run_dir / "samples.jsonl"
        self.dtype, dra, embedder = DTYPES[config.model.dtype], config.dra, None
        folder = self.load_data()
        config = self.config                            # with what was "auto"
        if dra.enabled and dra.embedder != "policy":    # before the policy, which may take minutes to load
            embedder = Embedder(dra.embedder, dra.max_tokens, dra.trust_remote_code, self.device, dra.text,
                                config.sampler.max_new_tokens)
        if line := preflight.embedder_reads(config):
            self.say(line)
        intact = checkpoint.newest_intact(self.run_dir) if self.first else None
        step = int(max_over_ranks(checkpoint.step_of(intact) if intact else -1))        # as the first rank finds it
        self.resumed = checkpoint.folder_of(self.run_dir, step) if step >= 0 else None
        n_tokens = min(len(self.tokenizer), Geometry.from_folder(folder).vocab)
        self.learner = Learner(config.model, config.learner, folder, self.device, n_tokens, config.sampler.temperature,
                               config.sampler.max_new_tokens, self.resumed and self.resumed / "policy")
        self.rollout_model = Transformer.from_pretrained(folder, self.dtype, self.device)
        self.rollout_model.n_tokens = n_tokens
        self.stop_ids = stop_ids(self.rollout_model, self.tokenizer, config.data)
        self.sampler = Sampler(self.rollout_model, config.sampler, self.stop_ids)
        if dra.enabled and dra.embedder == "policy":
            embedder = PolicyEmbedder(self.rollout_model, lambda ids: self.decode([ids])[0], dra.max_tokens, dra.text)
        self.grader = grader_of(config.reward.correct, config.reward.workers, config.reward.timeout_s)
        self.rewarder = Rewarder(reward_functions(config.reward), dra, advantage_scale(config),
                                 config.sampler.max_new_tokens, self.grader, embedder,
                                 opening(self.tokenizer, config.data), hook_of(dra, "weights"),
                                 hook_of(dra, "advantages"))
        self.label = labeller(config.eval.label)
        self.done = self.saved = 0                      # steps: trained, and in a checkpoint
        self.sizes = {"metrics": 0, "samples": 0}       # bytes of the record files at that checkpoint
        if self.resumed:
            meta = checkpoint.load(self.resumed, self.learner.optimizer_state())
            self.done, self.saved, self.sizes = meta["step"], meta["step"], meta["sizes"]
            self.learner.set_updates(meta["updates"])
        if self.done > config.run.steps:
            raise ValueError(f"run.dir = {config.run.dir!r} holds a run of {self.done} steps, run.steps = "
                             f"{config.run.steps} is less; raise it or name another run.dir")
        self.sampler.load_weights(full_weights(self.learner.policy))

    def load_data(self) -> str:
        """Checks the machine, reads the inputs, starts the ranks; returns the policy's folder."""
        config, findings = self.config, preflight.Findings()
        work = preflight.training(config, findings, int(os.environ.get("WORLD_SIZE", 1)))
        findings.stop(is_first_rank())
        folder = model_folder(config.model)
        inputs = read_inputs(config, folder)
        self.folder_files, self.tokenizer, self.benchmarks = read_files(folder), inputs.tokenizer, inputs.benchmarks
        self.identity = self.check_identity(folder, inputs.problems) if is_first_rank() else {}
        self.problems = [inputs.problems[row] for row in inputs.fitting]
        self.first_prompt = prompt_text(self.tokenizer, self.problems[0], config.data)
        self.rank, self.world, self.device = start_ranks(config.learner.offload)
        self.first = self.rank == 0
        for line in remarks_on(inputs, config):
            self.say(line)
        if config.model.activation_checkpointing == "auto":     # all ranks alike: each pass is a collective
            self.resolve(max_over_ranks(work.checkpointing) > 0)
        self.say(f"the first prompt: {json.dumps(self.first_prompt, ensure_ascii=False)}")
        return folder

    def resolve(self, recompute: bool) -> None:
        """Puts what model.activation_checkpointing = "auto" comes to into the settings, so that it is recorded."""
        self.say(f'model.activation_checkpointing = "auto": {str(recompute).lower()}, because memory is '
                 + ("too short without recomputation" if recompute else "enough"))
        self.config = replace(self.config, model=replace(self.config.model, activation_checkpointing=recompute))

    def check_identity(self, folder: str, problems: Sequence[dict]) -> dict[str, str]:
        """The files of this run by SHA-256; ValueError if the run in run.dir began with others."""
        path = self.run_dir / "identity.json"
        now = checkpoint.identity_of_run(self.config, folder, problems, self.benchmarks)
        if path.exists():
            before = json.loads(path.read_text(encoding="utf-8"))
            if changed := checkpoint.differences(before, now, may_change="eval."):
                raise ValueError(f"run.dir = {self.config.run.dir!r} holds a run with other files ({changed}); put "
                                 f"them back, name another run.dir, or remove {path} to go on with these all the same")
        elif (self.run_dir / "config.toml").exists():
            print(f"{path} is missing: whether the run began with these files cannot be checked")
        return now

    def run(self) -> int:
        """All steps that are left; 0, or 128 + signal number after an interruption."""
        config, stop, final = self.config, self.stop, self.run_dir / "final"
        if self.done == config.run.steps and final.exists():
            self.say(f"the run in {self.run_dir} is complete ({self.done} steps); raise run.steps to continue it or "
                     "name another run.dir")
            return 0
        self.claim()
        bar = tqdm(total=config.run.steps, initial=self.done, desc="train", unit="step",
                   disable=None if self.first else True)                # None: no bar in a log file
        with closing(self.trackers), self.grader, bar:
            going = self.was_evaluated() or self.evaluate()
            while going and self.done < config.run.steps and not stop.any_rank() and self.step(self.done):
                self.done += 1
                bar.update()
                going = not self.eval_due() or self.evaluate()
                if going and (self.done == config.run.steps or self.done % config.run.save_every == 0):
                    self.save()
        if stop.any_rank():
            if self.saved < self.done:
                self.save()
            self.say(f"interrupted after step {self.done} of {config.run.steps}, saved in {self.run_dir}; the same "
                     "command continues", sys.stderr)
            return 128 + int(max_over_ranks(stop.signum))
        self.write_policy(files.begin(final) if self.first else files.part_of(final), self.dtype)
        if self.first:
            files.publish(final)
            print(before_and_after(self.run_dir))
        return 0

    def step(self, step: int) -> bool:
        """Step 0, 1, ... on this rank's share of its prompts; False, with nothing changed, if interrupted."""
        config, G, clock = self.config, self.config.sampler.group_size, Clock(self.device)
        places = prompts_for_step(config.run.seed, step, self.rank, self.world, len(self.problems),
                                  config.data.prompts_per_step)
        problems = [self.problems[i] for _, i in places]
        prompts = [prompt_tokens(self.tokenizer, problem, config.data) for problem in problems]
        with self.stop.interruptible(f"step {step + 1}"):
            groups = self.sampler.generate(prompts, G, (config.run.seed, step), [position for position, _ in places])
            clock.lap("sample_s")
            completions = [completion for group in groups for completion in group]
            tokens = [completion.tokens for completion in completions]
            texts = self.decode(tokens)
            scores = self.rewarder(texts, problems, [len(ids) for ids in tokens], G, tokens,
                                   [sum(completion.logprobs) for completion in completions])
            labels = [self.label(text, problems[i // G]) for i, text in enumerate(texts)] if self.label else []
            clock.lap("reward_s")
        if self.stop.any_rank():
            return False
        records = gather_over_ranks(sample_records(step + 1, places, problems, completions, texts, scores, labels))
        records.sort(key=lambda record: record["position"])
        self.log(self.samples_path, records)            # before the update: should it fail, this is what it was given

        advantages = scores.advantage.flatten().tolist()
        rows = [Row(prompts[i // G], completions[i], advantages[i])
                for i in rows_in_loss(completions, scores.raw, config.learner)]
        if config.learner.offload:                      # memory is short: the next step makes cache and graphs anew
            self.sampler.release()
        figures = self.learner.update(rows, lr_at(step, config.learner, config.run.steps))
        self.sampler.load_weights(full_weights(self.learner.policy))
        clock.lap("update_s")
        record = train_record(step + 1, records, figures, scores, clock)
        self.log(self.metrics_path, [record])
        self.say(step_line(record, config.run.steps))
        return True

    def eval_due(self) -> bool:
        """Whether an evaluation belongs after the steps that are done."""
        every = self.config.eval.every
        return self.done in (0, self.config.run.steps) or bool(every) and self.done % every == 0

    def was_evaluated(self) -> bool:
        """Whether nothing is missing before the next step: a run that was stopped in an evaluation makes up for it."""
        made = any((record["kind"], record["step"]) == ("eval", self.done)
                   for _, record in files.read_jsonl(self.metrics_path)) if self.first else False
        return not self.eval_due() or max_over_ranks(made) > 0

    def evaluate(self) -> bool:
        """All benchmarks, each rank its share; False, with nothing logged, if interrupted."""
        results = []
        self.sampler.release()                          # an evaluation has a cache of its own
        for name, problems in self.benchmarks.items():
            if self.stop.any_rank():
                return False
            start, samples, settings = time.perf_counter(), [], settings_of(self.config.eval, name)
            with self.stop.interruptible(f"evaluation after step {self.done}", LESS_EVAL_MEMORY):
                places = range(self.rank, len(problems), self.world)
                sampler = eval_sampler(self.rollout_model, self.tokenizer, settings, self.config.data)
                samples = sample_problems(sampler, self.tokenizer, [problems[i] for i in places], self.config.data,
                                          settings, self.grader, places, progress=self.first, desc=f"eval {name}")
            if self.stop.any_rank():
                return False
            figures = summarize(name, gather_over_ranks(samples))
            results.append({"kind": "eval", "step": self.done, **figures, "seconds": time.perf_counter() - start})
            self.say(f"step {self.done} | {format_record(results[-1])}")
        self.log(self.metrics_path, results)
        return True

    def claim(self) -> None:
        """Makes the run folder this run's: its settings, records only of steps in the checkpoint, trackers."""
        config, steps = self.config, self.config.run.steps
        if self.first:
            if self.done:
                print(f"continuing at step {self.done} from {self.resumed}")
                if (before := load(Config, self.run_dir / "config.toml").run.steps) != steps:
                    print(f"run.steps was {before}: the learning rate of the first {self.done} steps followed that, "
                          f"that of the others follows {steps}")
            files.write(self.run_dir / "identity.json", json.dumps(self.identity, indent=2) + "\n")
            files.write(self.run_dir / "config.toml", dump(config))
            for path, size in ((self.metrics_path, self.sizes["metrics"]), (self.samples_path, self.sizes["samples"])):
                with open(path, "ab") as file:
                    file.truncate(size)                 # the steps after the checkpoint will be done again
            if (self.run_dir / "final").exists():       # of fewer steps: not the end of this run
                files.remove(self.run_dir / "final")
        self.trackers = Trackers(config.run.trackers if self.first else [], self.run_dir, asdict(config), self.done)
        self.log(self.metrics_path, [run_record(config, self.world, self.device, self.done, self.first_prompt)])
        self.stop.raise_at_once = False
        self.stop.know_processes()

    def say(self, text: str, file: TextIO | None = None) -> None:
        """A line for people, from the first rank, above the progress bar."""
        if self.first:
            tqdm.write(text, file=file)

    def log(self, path: Path, records: list[dict]) -> None:
        """Appends records to a file, and those of metrics.jsonl to the trackers, from the first rank."""
        if self.first:
            files.append_jsonl(path, records)
            if path == self.metrics_path:
                self.trackers.log(records)

    def save(self) -> None:
        """A checkpoint of the steps that are done; collective."""
        meta = {}
        if self.first:
            for path in (self.metrics_path, self.samples_path):
                files.sync(path)                        # the sizes in meta.json must be those on disk
            sizes = {"metrics": self.metrics_path.stat().st_size, "samples": self.samples_path.stat().st_size}
            meta = {"updates": self.learner.updates, "world": self.world, "sizes": sizes}
        checkpoint.save(self.run_dir, self.done, self.write_policy, self.learner.optimizer_state(), meta,
                        self.config.run.keep)
        self.saved = self.done
        if self.first:
            records = [record for _, record in files.read_jsonl(self.metrics_path) if record["kind"] == "train"]
            if note := noise_note(records):
                self.say(note)

    def write_policy(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        """The policy and its tokenizer as a Hugging Face folder; collective."""
        self.learner.save_policy(folder, dtype)
        if self.first:
            write_files(self.folder_files, folder)

    def decode(self, completions: Sequence[Sequence[int]]) -> list[str]:
        return decode(self.tokenizer, completions, self.stop_ids)


LESS_MEMORY = ("lower learner.micro_batch_tokens, sampler.slots or sampler.max_new_tokens, or set "
               "model.activation_checkpointing = true or learner.offload = true; --dry-run prints what each part needs")


def train(config: Config) -> int:
    """The whole run; returns 0, or 128 + signal number after an interruption.

    Raises ValueError for what the user has to fix, and ranks.Interrupted for a signal before the first step.
    """
    stop = Stop(f"run.dir = {config.run.dir!r}", LESS_MEMORY)
    try:
        with stop.users_errors():
            check(config, int(os.environ.get("WORLD_SIZE", 1)))
            with files.lock(Path(config.run.dir)) if is_first_rank() else nullcontext():
                return Trainer(config, stop).run()
    except FloatingPointError as error:
        raise ValueError(f"{stop.doing}: {error}; lower learner.lr or look at the last groups in "
                         f"{Path(config.run.dir) / 'samples.jsonl'}") from None


def plan(config: Config, request: dry_run.Request) -> int:
    """What --dry-run prints; nothing is written. ValueError, after all of it, with what stands in the way."""
    findings, tokenizer, inputs, dra = preflight.Findings(), None, None, config.dra
    missing = findings.warnings if request.gpu else findings.problems       # another machine may well have it
    with findings.collecting():
        check_settings(config, request.world)
    with findings.collecting(missing):
        folder = model_folder(config.model, SMALL_FILES)
        tokenizer = load_tokenizer(folder, config.data)
        if Path(config.model.path).is_dir():
            weight_files(Path(folder))
    with findings.collecting(missing):
        check_files(config)
        inputs = read_inputs(config, folder) if tokenizer else None
    with findings.collecting(missing):
        if dra.enabled and dra.embedder != "policy" and (not request.gpu or Path(dra.embedder).is_dir()):
            Embedder(dra.embedder, dra.max_tokens, dra.trust_remote_code, max_new_tokens=config.sampler.max_new_tokens)
        findings.warnings += [line for line in (preflight.embedder_reads(config),) if line]
    lines, prompt, benchmarks = [], config.data.max_prompt_tokens, {}
    if inputs:
        line, prompt, _ = dry_run.prompt_figures(tokenizer, [inputs.problems[i] for i in inputs.fitting], config.data)
        lines = [*remarks_on(inputs, config), line]
        benchmarks = {name: len(rows) for name, rows in inputs.benchmarks.items()}
    with findings.collecting():
        if not request.gpu:
            preflight.training(config, findings, request.world)
    with findings.collecting():
        model = dry_run.network_or_known(config.model, findings)
        lines += dry_run.training(config, model, request, prompt, benchmarks, findings)
    return dry_run.tell(lines, findings)


def main(argv: list[str]) -> int:
    args = parse_args(Config, argv, __doc__, dry_run.add_options)
    config, request = load(Config, args.config, args.overrides), dry_run.request(args)
    if not config.run.dir:
        config = replace(config, run=replace(config.run, dir=f"runs/{Path(args.config).stem}"))
    if request:
        return plan(config, request) if is_first_rank() else 0
    return train(config)


if __name__ == "__main__":
    run_main(main)
