"""The settings of a training run, section by section, and what can be known to be wrong with them before anything is loaded."""
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch

from config import changes, import_function, load
from data import DataConfig, check_source
from learner import LearnerConfig
from metrics import check_trackers
from model import Geometry, ModelConfig
from reward import DraConfig, RewardConfig, RewardFunction, reward_function, smi_values
from sampler import SamplerConfig
from samples import EvalConfig, check_eval, check_room


@dataclass(frozen=True)
class TrainDataConfig(DataConfig):
    train: str = ""
    """JSONL, JSON or parquet file with a problem and an answer per row, or hub:owner/name[/config][:split]"""
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
    dir: str = ""
    """folder for everything the run writes, by default runs/NAME for NAME.toml; the same command continues a run that stands there"""
    seed: int = 0
    """seed of data order and completions"""
    steps: Annotated[int, ">= 1"] = 500
    """training steps"""
    save_every: Annotated[int, ">= 1"] = 50
    """steps between checkpoints"""
    keep: Annotated[int, ">= 1"] = 2
    """newest checkpoints kept"""
    resume: bool = True
    """continue the run in run.dir; false refuses a folder that already holds one"""
    trackers: list[str] = field(default_factory=list)
    """where metrics go besides metrics.jsonl: "tensorboard" (files in run.dir), "wandb" """


@dataclass(frozen=True)
class Config:
    model: ModelConfig
    data: TrainDataConfig
    sampler: SamplerConfig
    reward: RewardConfig
    dra: DraConfig
    learner: LearnerConfig
    eval: TrainEvalConfig
    run: RunConfig


def check(config: Config, world: int) -> None:
    """ValueError for whatever can be known to be wrong before anything is loaded."""
    check_source("data.train", config.data.train)
    check_eval(config.eval, config.data)
    if config.data.prompts_per_step < world:
        raise ValueError(f"data.prompts_per_step = {config.data.prompts_per_step} is less than one prompt for each of {world} ranks")
    if not config.reward.functions:
        raise ValueError("reward.functions is empty; name at least one, such as {accuracy = 1.0}")
    reward_functions(config.reward)
    if config.dra.enabled and config.dra.embedder.startswith((".", "/")) and not Path(config.dra.embedder).is_dir():
        raise ValueError(f'dra.embedder = {config.dra.embedder!r} does not exist; name a sentence-transformers folder, a hub name, or "policy"')
    if config.dra.enabled:                              # the refusals of reward.py, with the keys they name
        smi_values(torch.eye(2), config.dra.smi, config.dra.sharpen, config.dra.clamp, torch.ones(2) if config.dra.scope == "correct" else None)
    if config.dra.weights:
        import_function("dra.weights", config.dra.weights)
    check_trackers(config.run.trackers)
    if not config.run.resume and (Path(config.run.dir) / "metrics.jsonl").exists():
        raise ValueError(f"run.dir = {config.run.dir!r} already holds a run and run.resume is false; name another folder")
    if (Path(config.run.dir) / "config.toml").exists():
        check_unchanged(config, Path(config.run.dir) / "config.toml")
    if Path(config.model.path).is_dir():
        context = Geometry.from_folder(config.model.path).context
        if config.data.max_prompt_tokens + config.sampler.max_new_tokens > context:
            raise ValueError(f"data.max_prompt_tokens = {config.data.max_prompt_tokens} and sampler.max_new_tokens = "
                             f"{config.sampler.max_new_tokens} exceed the model's context of {context}; lower one of them")
        if config.eval.benchmarks:
            check_room(config.eval, context)


MAY_CHANGE = ("run.dir", "run.steps", "run.save_every", "run.keep", "run.resume", "run.trackers", "eval.", "sampler.slots", "reward.workers", "reward.timeout_s",
              "learner.offload")


def check_unchanged(config: Config, saved: Path) -> None:
    """ValueError listing what differs from the settings a run was started with, but for keys that do not change its course."""
    if changed := changes(load(Config, saved), config, MAY_CHANGE):
        raise ValueError(f"run.dir = {config.run.dir!r} holds a run with other settings ({changed}); name another run.dir or change them back")


def reward_functions(config: RewardConfig) -> dict[str, tuple[RewardFunction, float]]:
    """The functions that `reward.functions` names, ours and those of users, with their weights."""
    return {name: (import_function("reward.functions", name) if ":" in name else reward_function(name, config), weight)
            for name, weight in config.functions.items()}
