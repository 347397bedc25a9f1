"""What similarities know of strategies, and what they make of surface: several kernels, nothing is trained.

    python -m experiments kernels       experiments/kernels.jsonl and docs/experiments.md, a minute on one core

Samples are those of each tiny task's committed policy under its own recipe, on the first PROBLEMS test problems. MiniLM
and the open questions come in where `python -m real_lm.make` has put its two folders; without them their figures stay
as the file has them.
"""
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import pearsonr
from torch import Tensor

import files
from config import load
from data import load_problems
from dra_grpo import Config
from embedder import Embedder, PolicyEmbedder
from eval_samples import grader_of, labeller
from experiments.controls import process_smi
from experiments.rules import same_strategy
from experiments.runs import rounded
from experiments.tables import table
from model import Transformer
from prompts import decode, load_tokenizer, prompt_tokens, stop_ids
from report.kernel import estimates, same_label_auc
from reward import (DraConfig, cosine_similarity, diversity_weights, dra_advantages, group_advantages,
                    weights_of_smi)
from sampler import Sampler, SamplerConfig
from tiny_chain.task import STRATEGIES, solution

# P problems, S samples of each, G completions of a group, D embedding size

FIGURES = Path("experiments/kernels.jsonl")
TASKS = {"sums": "configs/tiny.toml", "chain": "configs/chain.toml"}
POLICY, ENCODER, QUESTIONS = Path("real_lm/policy"), Path("real_lm/encoder"), Path("real_lm/test_wordings.jsonl")
PROBLEMS, SAMPLES, SIZES, G = 40, 32, (2, 4, 8, 16, 32), 8
POWERS = {"1": DraConfig(), "4": DraConfig(sharpen=4.0), "8": DraConfig(sharpen=8.0),
          "log-det": DraConfig(smi="log_det")}
TRUE = "true kernel"
AROUND = ("{}\n\nJust one example of", "{} is one of them", "One is the {}")      # right by the loose rule of real_lm
Embed = Callable[[list[str], list[list[int]]], Tensor]  # texts and tokens of N completions to (N, D)


class Samples(NamedTuple):
    """Completions of a policy, problem by problem: P * S texts, their tokens, labels and whether they are right."""
    rows: list[dict]
    texts: list[str]
    tokens: list[list[int]]
    labels: list[str | None]
    rights: list[bool]


def sampled(config: Config, model: Transformer, tokenizer, problems: int, samples: int) -> Samples:
    """`samples` completions of the first `problems` problems of the recipe's first benchmark, at its temperature."""
    rows = load_problems(config.eval.benchmarks[0], config.data)[:problems]
    stops = stop_ids(model, tokenizer, config.data)
    settings = SamplerConfig(samples, config.sampler.max_new_tokens, config.sampler.temperature)
    prompts = [prompt_tokens(tokenizer, row, config.data) for row in rows]
    drawn = [one for group in Sampler(model, settings, stops).generate(prompts, samples, (0,)) for one in group]
    texts = decode(tokenizer, [one.tokens for one in drawn], stops)
    asked, label = [row for row in rows for _ in range(samples)], labeller(config.eval.label)
    with grader_of(config.reward.correct, 1, config.reward.timeout_s) as grader:
        rights = [grade.correct for grade in grader.grade_rows(texts, asked)]
    return Samples(rows, texts, [one.tokens for one in drawn], [label(*pair) for pair in zip(texts, asked)], rights)


def kernels(counts: str, model: Transformer) -> dict[str, Embed]:
    """Of texts: token counts, the policy's hidden states and, where its folder is, MiniLM."""
    found = {"token counts": Embedder(counts).encode} if counts else {}
    found["policy"] = PolicyEmbedder(model).encode
    return found | ({"MiniLM": Embedder(str(ENCODER)).encode} if ENCODER.exists() else {})


def open_policy(folder: str | Path) -> tuple[Transformer, object]:
    model, tokenizer = Transformer.from_pretrained(folder), load_tokenizer(folder)
    model.n_tokens = min(len(tokenizer), model.g.vocab)
    return model, tokenizer


# ------------------------------------------------------------------------------------------------ strategies


def knowledge(similarity_PSS: np.ndarray, labels: Sequence[str | None], rights: Sequence[bool]) -> Iterator[dict]:
    """What a kernel knows of labels: its AUC among all samples of a problem and among the right ones, and by power and
    group size what SMI knows; a problem's samples are cut into groups in the order they were drawn."""
    P, S, _ = similarity_PSS.shape
    labels_PS = [labels[p * S:(p + 1) * S] for p in range(P)]
    rights_PS = [rights[p * S:(p + 1) * S] for p in range(P)]
    among_right = [[name if right else None for name, right in zip(*one)] for one in zip(labels_PS, rights_PS)]
    yield {"kind": "auc", "all": same_label_auc(list(zip(similarity_PSS, labels_PS))),
           "right": same_label_auc(list(zip(similarity_PSS, among_right)))}
    for size in SIZES:
        places = [(p, slice(i, i + size)) for p in range(P) for i in range(0, S - size + 1, size)]
        groups = [[part[p][i] for p, i in places] for part in (labels_PS, rights_PS)]
        for power, dra in POWERS.items():
            found = estimates([similarity_PSS[p, i, i] for p, i in places], *groups, dra)
            yield {"kind": "smi", "group": size, "power": power, "spearman": found.rank,
                   "pearson": None if found.rank is None else pearsonr(found.densities, found.shares).statistic,
                   "density": float(np.mean(found.densities)), "share": float(np.mean(found.shares))}


def of_task(task: str, problems: int = PROBLEMS, samples: int = SAMPLES) -> Iterator[dict]:
    """All figures of a tiny task."""
    config = load(Config, TASKS[task])
    model, tokenizer = open_policy(config.model.path)
    found = sampled(config, model, tokenizer, problems, samples)
    embeds = kernels(config.dra.embedder, model)
    vectors = {name: embed(found.texts, found.tokens).double().view(problems, samples, -1)
               for name, embed in embeds.items()}
    for name, vectors_PSD in vectors.items():
        yield {"task": task, "kernel": name, "kind": "pairs", **official_pairs(vectors_PSD, found.rights)}
    similarity = {name: cosine_similarity(vectors_PSD) for name, vectors_PSD in vectors.items()}
    similarity[TRUE] = same_strategy(found.texts, found.rows).double()
    for name, similarity_PSS in similarity.items():
        for line in knowledge(similarity_PSS.numpy(), found.labels, found.rights):
            yield {"task": task, "kernel": name, **line}
    if task == "chain":
        for name, embed in embeds.items():
            yield {"task": task, "kernel": name, "kind": "surface", **surface(written(found.rows), embed, tokenizer)}


def official_pairs(vectors_PSD: Tensor, rights: Sequence[bool]) -> dict:
    """DRA's advantages in groups of 6 that are all right, the first six right ones of each problem, by the official
    code's pairs against those within the group: correlation, and how often the sign is another."""
    rights_PS = torch.tensor(rights).view(vectors_PSD.shape[:2])
    groups_PGD = torch.stack([vectors_SD[right_S][:6] for vectors_SD, right_S in zip(vectors_PSD, rights_PS)
                              if right_S.sum() >= 6])
    smi_PG = process_smi(groups_PGD.flatten(0, 1), 6).view(groups_PGD.shape[:2])
    official_PG = group_advantages(weights_of_smi(smi_PG))
    own_PG = group_advantages(diversity_weights(cosine_similarity(groups_PGD)))
    return {"groups": len(groups_PGD), "correlation": pearsonr(official_PG.flatten(), own_PG.flatten()).statistic,
            "wrong_sign": (official_PG * own_PG < 0).double().mean().item()}


# ------------------------------------------------------------------------------------------------ surface


class Notation:
    """In the place of random.Random for `solution`: always the first or the second way to write, and no slips."""

    def __init__(self, way: int):
        self.choice, self.random = lambda ways: ways[way], lambda: 1.0


def written(rows: Sequence[dict]) -> list[tuple[str, str, str]]:
    """Right solutions of chain problems: (one, the same in the other notation, another strategy in the first one's)."""
    triples = []
    for row in rows:
        numbers = list(map(int, row["problem"].split("+")))
        one, other = ([solution(name, numbers, Notation(way)) for name in STRATEGIES] for way in (0, 1))
        triples += [(one[i], other[i], one[j]) for i in range(4) for j in range(4) if i != j]
    return triples


def answered(rows: Sequence[dict]) -> list[tuple[str, str, str]]:
    """Right answers to open questions: (an item, the same with text around it, the next item of the question)."""
    items = {row["category"]: [name.split("|")[0].capitalize() for name in row["items"][:6]] for row in rows}
    return [(name, around.format(name), names[i + 1]) for names in items.values() for i, name in enumerate(names[:-1])
            for around in AROUND]


def surface(triples: Sequence[tuple[str, str, str]], embed: Embed, tokenizer) -> dict:
    """Of triples (answer, same answer with another surface, another answer): mean cosines of the answer with the two,
    in how many the surface counts for more, and the advantage of one of the two among G - 1 clones of the answer, all
    right: by the published DRA, with the same under Dr. GRPO, and shared with sharpen 8 and bonus 1."""
    texts = sorted({text for triple in triples for text in triple})
    vectors = embed(texts, [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]).double()
    similarity_N33 = cosine_similarity(torch.stack([vectors[[*map(texts.index, triple)]] for triple in triples]))
    same_N, another_N = similarity_N33[:, 0, 1], similarity_N33[:, 0, 2]
    found = {"same": same_N.mean().item(), "another": another_N.mean().item(),
             "surface_counts_more": (same_N < another_N).double().mean().item()}
    ones = torch.ones(len(triples), G)
    for name, cosine_N in (("same", same_N), ("another", another_N)):
        kernel_NGG = torch.ones(len(triples), G, G, dtype=torch.float64)
        kernel_NGG[:, 0, 1:] = kernel_NGG[:, 1:, 0] = cosine_N[:, None]
        for rule, scale, options in (("dra", "std", {}), ("dr", "none", {}),
                                     ("shared", "std", {"apply": "advantage", "sharpen": 8.0, "bonus": 1.0})):
            advantages_NG = dra_advantages(ones, kernel_NGG, ones.bool(), scale, **options)[-1]
            found[f"{rule}_{name}"] = advantages_NG[:, 0].mean().item()
    return found


def of_questions() -> Iterator[dict]:
    """Surface on the open questions; nothing without the folders of `python -m real_lm.make`."""
    if not (POLICY.exists() and ENCODER.exists()):
        return
    triples = answered([row for _, row in files.read_jsonl(QUESTIONS)])
    model, tokenizer = open_policy(POLICY)
    for name, embed in kernels("", model).items():
        yield {"task": "questions", "kernel": name, "kind": "surface", **surface(triples, embed, tokenizer)}


# ------------------------------------------------------------------------------------------------ tables


def key(line: dict) -> tuple:
    return tuple(line.get(name) for name in ("task", "kernel", "kind", "group", "power"))


def measure() -> None:
    """Writes FIGURES: all figures that can be measured here, and those that it has for the others."""
    found = [line for task in TASKS for line in of_task(task)] + list(of_questions())
    measured = set(map(key, found))
    found += [line for line in figures() if key(line) not in measured]
    files.write(FIGURES, files.json_lines(rounded(found)).decode())


def figures() -> list[dict]:
    return [line for _, line in files.read_jsonl(FIGURES)] if FIGURES.exists() else []


def number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def tables(lines: Sequence[dict]) -> dict[str, str]:
    """{name: Markdown} of the figures."""
    found, rows, sizes = {key(line): line for line in lines}, [], []
    for line in (line for line in lines if line["kind"] == "auc"):
        one = line["task"], line["kernel"]
        smi = {(size, power): found[*one, "smi", size, power] for size in SIZES for power in POWERS}
        rows.append([*one, number(line["all"], ".2f"), number(line["right"], ".2f"),
                     *(" / ".join(number(smi[G, power][name], form) for name, form in
                                  (("spearman", "+.2f"), ("pearson", "+.2f"), ("density", ".2f")))
                       for power in POWERS), f"{smi[G, '1']['share']:.2f}"])
        sizes += [[*one, power, *(f"{number(smi[size, power]['spearman'], '+.2f')} / "
                                  f"{smi[size, power]['density'] / smi[size, power]['share']:.2f}" for size in SIZES)]
                  for power in ("1", "8") if line["kernel"] != TRUE or power == "1"]
    heads = [f"power {power}" if power.isdigit() else power for power in POWERS]
    return {
        "kernels": table(["task", "kernel", "AUC", "AUC, right ones", *heads, "true share"], rows),
        "kernels by size": table(["task", "kernel", "power", *(f"G = {size}" for size in SIZES)], sizes),
        "surface": table(
            ["task", "kernel", "cosine, same answer, other surface", "another answer", "surface counts more",
             "A of it / of another answer: DRA", "Dr. GRPO, DRA", "shared, bonus 1"],
            [[line["task"], line["kernel"], f"{line['same']:.3f}", f"{line['another']:.3f}",
              f"{line['surface_counts_more']:.0%}", *(f"{line[f'{rule}_same']:+.{digits}f} / "
                                                      f"{line[f'{rule}_another']:+.{digits}f}"
                                                      for rule, digits in (("dra", 2), ("dr", 3), ("shared", 2)))]
             for line in lines if line["kind"] == "surface"]),
        "official pairs": table(
            ["task", "kernel", "groups", "correlation with the group's own advantages", "wrong sign"],
            [[line["task"], line["kernel"], str(line["groups"]), f"{line['correlation']:+.2f}",
              f"{line['wrong_sign']:.0%}"] for line in lines if line["kind"] == "pairs"])}
