"""What similarities know of strategies: several kernels on samples of each task's untrained policy; nothing is trained.

    python -m experiments kernels [RUN ...]     writes experiments/kernels.jsonl, then: python -m experiments tables

Samples are SAMPLES completions of PROBLEMS held-out problems under the task's own recipe. The language-model task and
MiniLM come in where `python -m real_lm.make` has put their folders; what cannot be measured here keeps the figures that
the file has. RUNs are folders of runs on the open questions with their samples: what DRA paid for there.
"""
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.stats import linregress
from torch import Tensor

import files
from config import load
from data import load_problems
from dra_grpo import Config
from embedder import Embedder, PolicyEmbedder
from eval_samples import eval_sampler, grader_of, labeller
from experiments.controls import process_smi
from experiments.runs import rounded
from experiments.tables import table
from metrics import mean
from model import DTYPES, Transformer
from prompts import decode, load_tokenizer, prompt_tokens
from real_lm.results import name_of
from real_lm.task import labels_of, plain
from report.kernel import estimates, same_label_auc, similarities
from report.read import problem_finder, read_groups, read_run
from reward import (DraConfig, apply_weights, cosine_similarity, dra_advantages, graph_cut_smi, group_advantages,
                    weights_of_smi)

# P problems, S samples of each, N = P * S, G completions of a group, D embedding size

RECORDS = Path("experiments/kernels.jsonl")
TASKS = {"sums": "configs/tiny.toml", "chain": "configs/chain.toml", "questions": "configs/smollm2_dra_grpo.toml"}
ENCODER = Path("real_lm/encoder")
PROBLEMS, SAMPLES = 50, 64
G, SIZES = 8, (2, 4, 8, 16, 32)
FORMS = {"1": DraConfig(), "4": DraConfig(sharpen=4.0), "8": DraConfig(sharpen=8.0), "log-det": DraConfig(smi="log_det")}
TRUE = "true"
Encode = Callable[[list[str], list[list[int]]], Tensor]         # texts and tokens of N completions -> (N, D)


# ------------------------------------------------------------------------------------------------ samples and kernels


def token_counts(texts: list[str], tokens: list[list[int]]) -> Tensor:
    """How often each token occurs: what the embedders of the tiny tasks compute, for any tokenizer."""
    number = {token: i for i, token in enumerate(sorted({token for row in tokens for token in row}))}
    return torch.stack([torch.bincount(torch.tensor([number[token] for token in row], dtype=torch.long),
                                       minlength=len(number)).double() for row in tokens])


class Task:
    """A recipe's policy and samples of it, problem by problem: `texts`, `tokens`, `labels` and `right`, N each."""

    def __init__(self, recipe: str, problems: int = PROBLEMS, samples: int = SAMPLES):
        config = load(Config, recipe)
        self.config, self.samples = config, samples
        self.tokenizer = load_tokenizer(config.model.path, config.data)
        self.model = Transformer.from_pretrained(config.model.path, DTYPES[config.model.dtype])
        self.model.n_tokens = min(len(self.tokenizer), self.model.g.vocab)
        self.rows = load_problems(config.eval.benchmarks[0], config.data, gold=not config.reward.correct)[:problems]
        sampler = eval_sampler(self.model, self.tokenizer, config.eval, config.data)
        self.stops = sampler.stop_ids
        groups = sampler.generate([prompt_tokens(self.tokenizer, row, config.data) for row in self.rows], samples, (0,))
        self.tokens = [completion.tokens for group in groups for completion in group]
        self.texts = decode(self.tokenizer, self.tokens, self.stops)
        asked, label = [row for row in self.rows for _ in range(samples)], labeller(config.eval.label)
        self.labels = [label(text, row) for text, row in zip(self.texts, asked)]
        with grader_of(config.reward.correct, config.reward.workers, config.reward.timeout_s) as grader:
            self.right = [grade.correct for grade in grader.grade_rows(self.texts, asked)]

    def encoders(self) -> dict[str, Encode]:
        """Kernels that know nothing of the task. The policy reads its tokens with the one that ends them, as in
        training; counts are of the text alone, as the tiny tasks' embedders read it."""
        def counts(texts: list[str], tokens: list[list[int]]) -> Tensor:
            return token_counts(texts, [[token for token in row if token not in self.stops] for row in tokens])

        found: dict[str, Encode] = {"token counts": counts, "policy": PolicyEmbedder(self.model).encode}
        return found | ({"MiniLM": Embedder(str(ENCODER)).encode} if ENCODER.exists() else {})

    def groups(self, values: Sequence, size: int) -> list[Sequence]:
        """Values of all completions in groups of `size` of one problem each; what is left of a problem stays out."""
        return [values[start + i : start + i + size] for start in range(0, len(values), self.samples)
                for i in range(0, self.samples - size + 1, size)]


def same_label(labels: Sequence[str | None]) -> np.ndarray:
    """The true kernel: 1 for two completions of one label and on the diagonal, else 0."""
    named = [label or f"none {i}" for i, label in enumerate(labels)]
    return np.equal.outer(named, named).astype(float)


def kernels(task: Task, encode: Encode | None, size: int, vectors: Tensor | None = None) -> list[np.ndarray]:
    """Cosines (G, G) of each group of `size`; None is the true kernel."""
    if encode is None:
        return [same_label(names) for names in task.groups(task.labels, size)]
    return [cosine_similarity(rows_GD.double()).numpy() for rows_GD in task.groups(vectors, size)]
