"""Does the embedder know what DRA needs to know? Tests of similarities against rewards and against labels."""
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from math import factorial, prod
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import mannwhitneyu, norm, pearsonr, rankdata, spearmanr, t

from config import build, parse_value
from embedder import Embedder
from eval_samples import labeller
from report.read import config_of, problem_finder, samples_file, some_groups
from reward import DraConfig, cosine_similarity, smi_values, weights_of_smi

# G completions of a group, P pairs of them, D embedding size, R permutations


def similarities(groups: Sequence[dict], dra: DraConfig) -> tuple[list[np.ndarray], int]:
    """Cosines (G, G) of the completions of each group by the embedder of `dra`, and of how many completions it reads
    only the beginning."""
    if dra.embedder == "policy":
        raise ValueError('dra.embedder = "policy" reads hidden states, which are not kept; name a '
                         'sentence-transformers folder or hub name')
    embedder = Embedder(dra.embedder, dra.max_tokens, dra.trust_remote_code, part=dra.text)
    texts = [dra.text == "answer" and completion["answer"] or completion["text"]
             for group in groups for completion in group["completions"]]
    rows_ND = embedder.encode(texts)
    sizes = [len(group["completions"]) for group in groups]
    return [cosine_similarity(rows_GD).numpy() for rows_GD in rows_ND.double().split(sizes)], sum(embedder.cut(texts))


def about_cut(cut: int, groups: Sequence[dict]) -> list[str]:
    total = sum(len(group["completions"]) for group in groups)
    return [f"note: of {cut} of {total} completions the embedder read only the beginning"] if cut else []


def dra_config(path: Path, overrides: Sequence[str]) -> DraConfig:
    """The [dra] section of the run that `path` belongs to, with "dra.key=value" overrides."""
    values = dict(config_of(path).get("dra", {}))
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key.startswith("dra."):
            raise ValueError(f"argument {text!r} is not of the form dra.key=value")
        values[key.removeprefix("dra.")] = parse_value(value)
    return build(DraConfig, values, "dra.")


PERMUTATIONS = 999


def group_consistency(rewards_G: Sequence[float], similarity_GG: np.ndarray,
                      rng: np.random.Generator) -> tuple[float, float, float, float] | None:
    """Spearman's rho of |reward difference| and 1 - cosine over the pairs of a group, its p-value, and what shuffled
    rewards say.

    (rho, p of scipy's t approximation, p by permutation, share of permutations with the former < 0.05). The t
    approximation takes pairs for independent, which those of one completion are not; permuting the rewards of the
    completions (Mantel's test) does not. None where all rewards or all distances are equal: there is no correlation.
    """
    G = len(rewards_G)
    first, second = np.triu_indices(G, 1)
    reward_GG = np.abs(np.subtract.outer(rewards_G, rewards_G))
    distance = 1 - similarity_GG[first, second]
    if np.ptp(reward_GG[first, second]) == 0 or np.ptp(distance) < 1e-9:
        return None
    rho, p = spearmanr(reward_GG[first, second], distance)
    rank_GG = np.zeros((G, G))
    rank_GG[first, second] = rankdata(reward_GG[first, second])
    rank_GG += rank_GG.T                                # a permutation of completions permutes the ranks of pairs
    order_RG = rng.permuted(np.tile(np.arange(G), (PERMUTATIONS, 1)), axis=1)
    a_RP, b_P = rank_GG[order_RG[:, first], order_RG[:, second]], rankdata(distance)
    a_RP, b_P = a_RP - a_RP.mean(1, keepdims=True), b_P - b_P.mean()
    rho_R = (a_RP @ b_P / np.sqrt((a_RP**2).sum(1) * (b_P**2).sum())).clip(-1, 1)
    free = len(first) - 2
    with np.errstate(divide="ignore", invalid="ignore"):
        p_R = 2 * t.sf(np.abs(rho_R) * np.sqrt(free / (1 - rho_R**2)), free) if free > 0 else np.ones(PERMUTATIONS)
    exceed = np.count_nonzero(np.abs(rho_R) >= abs(rho) - 1e-12)
    return float(rho), float(p), (1 + exceed) / (1 + PERMUTATIONS), float((p_R < 0.05).mean())


def different_orders(rewards_G: Sequence[float]) -> int:
    """How many tables of |reward difference| the permutations of a group's rewards make.

    The p-value of a permutation test is at least 1 over it.
    """
    orders = factorial(len(rewards_G)) // prod(map(factorial, Counter(rewards_G).values()))
    ordered = np.sort(rewards_G)
    # high and low exchanged: the same differences
    mirrored = np.allclose(ordered + ordered[::-1], ordered[0] + ordered[-1])
    return orders // 2 if mirrored and orders > 1 else orders


def spearman_power(rho: float, pairs: int) -> float:
    """Chance that Spearman's test over `pairs` independent pairs gives p < 0.05, two-sided, where the correlation is
    rho.

    By Fisher's z with standard error sqrt((1 + rho^2 / 2) / (pairs - 3)) (Bonett and Wright 2000). Completions share
    pairs, so it flatters.
    """
    if pairs < 4:
        return 0.0
    error = np.sqrt((1 + rho**2 / 2) / (pairs - 3))
    limit = norm.isf(0.025) / np.sqrt(pairs - 3)
    return float(norm.sf((limit - np.arctanh(rho)) / error) + norm.cdf((-limit - np.arctanh(rho)) / error))


def consistency(path: Path, overrides: Sequence[str], most: int) -> str:
    """Figure 2 of arXiv:2505.09655 for the groups of a file.

    How often rewards and texts of a prompt's completions differ together.
    """
    file = samples_file(path)
    dra, groups = dra_config(file, overrides), some_groups(file, most)
    kernels, cut = similarities(groups, dra)
    rng, rewards = np.random.default_rng(0), [[c["reward"] for c in group["completions"]] for group in groups]
    found = [(group_consistency(rewards_G, similarity_GG, rng), different_orders(rewards_G) > 20)
             for rewards_G, similarity_GG in zip(rewards, kernels)]
    tested = [(*result, reaches) for result, reaches in found if result is not None and np.isfinite(result[1])]
    lines = [f"{file}: {len(groups)} groups; in {len(groups) - len(tested)} all rewards or all texts are equal, which "
             f"leaves {len(tested)} to test", *about_cut(cut, groups)]
    if not tested:
        return "\n".join(lines)
    rho, p, p_permuted, alarms, reaches = map(np.array, zip(*tested))
    counts, edges = np.histogram(p, 20, (0, 1))
    lines += [f"Spearman's rho of |reward difference| and 1 - cosine: mean {rho.mean():+.3f}, median "
              f"{np.median(rho):+.3f}, from {rho.min():+.3f} to {rho.max():+.3f}", "",
              "p-values (t approximation, as in the paper's figure)"]
    lines += [f"{low:>6.2f} - {high:.2f}{count:>7}  " + "#" * round(50 * count / counts.max())
              for low, high, count in zip(edges, edges[1:], counts)]
    lines += ["", f"p < 0.05 in {(p < 0.05).mean():.1%} of the groups; with the same groups' rewards shuffled, in "
                  f"{alarms.mean():.1%} (pairs are not independent, so not 5 %)"]
    if reaches.any():
        lines.append(f"p < 0.05 by permutation in {(p_permuted[reaches] < 0.05).mean():.1%} of {reaches.sum()}; "
                     "without any relation it would be at most 5 %")
    if not reaches.all():
        lines.append(f"in {(~reaches).sum()} groups the rewards have at most 20 different orders (a single right "
                     "answer, say), and no permutation can have p < 0.05")
    for G in sorted({len(group["completions"]) for group in groups}):
        pairs = G * (G - 1) // 2
        powers = ", ".join(f"{spearman_power(rho, pairs):.2f} where rho is {rho}" for rho in (0.1, 0.3, 0.5, 0.7))
        lines.append(f"power at G = {G} ({pairs} pairs, if they were independent and without ties; so at most): "
                     f"{powers}")
    return "\n".join([*lines, "so a p-value above 0.05 is not evidence that rewards and meaning agree: compare the "
                              "shares, not single groups"])


def same_label_auc(groups: Sequence[tuple[np.ndarray, Sequence[str | None]]]) -> float | None:
    """Chance that a pair of one label is more similar than a pair of two, ties half; pairs are compared within their
    group only.

    Each group is (similarity (G, G), labels); completions without a label stay out. None where no group has both kinds
    of pairs.
    """
    wins = total = 0.0
    for similarity_GG, labels in groups:
        pairs = [(similarity_GG[i, j], labels[i] == labels[j]) for i in range(len(labels)) for j in range(i)
                 if None not in (labels[i], labels[j])]
        same, different = [value for value, equal in pairs if equal], [value for value, equal in pairs if not equal]
        if same and different:
            wins += mannwhitneyu(same, different, method="asymptotic").statistic
            total += len(same) * len(different)
    return wins / total if total else None


class Estimates(NamedTuple):
    """What the weights of groups know of labels; see `kernel` for the words."""
    ratio: float                                        # largest over smallest weight of a group, mean over groups
    rank: float | None                                  # Spearman, SMI and count of the label in the group, mean
    densities: list[float]                              # (1 + SMI) / G of each completion with a label
    shares: list[float]                                 # of its label in its group


def estimates(kernels: Sequence[np.ndarray], labels: Sequence[Sequence[str | None]], rights: Sequence[Sequence[bool]],
              dra: DraConfig) -> Estimates:
    """SMI under the options of `dra` against labels, over groups of similarities (G, G); `rank` is None where no group
    has different counts and different SMI. Completions without a label count as neighbours only."""
    ratios, ranks, densities, shares = [], [], [], []
    for similarity_GG, names, right in zip(kernels, labels, rights, strict=True):
        correct_G = torch.tensor(right) if dra.scope == "correct" else None
        smi_G = smi_values(torch.from_numpy(similarity_GG), dra.smi, dra.sharpen, dra.clamp, correct_G)
        weight_G = weights_of_smi(smi_G).abs()
        ratios.append((weight_G.max() / weight_G.min()).item())
        known = [i for i, name in enumerate(names) if name is not None]
        count = [names.count(names[i]) for i in known]
        density = [round(value, 9) for value in ((1 + smi_G) / len(names)).tolist()]    # clones stay equal
        densities += [density[i] for i in known]
        shares += [n / len(names) for n in count]
        if len(set(count)) > 1 and len({density[i] for i in known}) > 1:
            ranks.append(spearmanr([density[i] for i in known], count).statistic)
    return Estimates(float(np.mean(ratios)), float(np.mean(ranks)) if ranks else None, densities, shares)


def labels_of(file: Path, groups: Sequence[dict], label: str) -> tuple[list[list[str | None]], list[str]]:
    """The labels of each group's completions, those in the file or those of the function `label`, and what to say of
    it."""
    if not label:
        return [[completion.get("label") for completion in group["completions"]] for group in groups], []
    function, notes = labeller(label, "--label"), []
    try:
        find = problem_finder(file, gold=not config_of(file).get("reward", {}).get("correct"))
        rows = list(map(find, groups))
    except ValueError as error:
        rows = [{key: group[key] for key in ("id", "problem", "answer") if key in group} for group in groups]
        notes = [f"note: --label gets of the problems only {', '.join(rows[0])} ({error})"]
    return [[function(completion["text"], row) for completion in group["completions"]]
            for group, row in zip(groups, rows)], notes


def kernel(path: Path, overrides: Sequence[str], most: int, label: str) -> str:
    """Whether similarities by this embedder, and the weights made of them, know what the labels know."""
    file = samples_file(path)
    dra, groups = dra_config(file, overrides), some_groups(file, most)
    labels, notes = labels_of(file, groups, label)
    if dra.weights:
        raise ValueError(f"dra.weights = {dra.weights!r} takes the place of what is tested here; leave it empty")
    kernels, cut = similarities(groups, dra)
    values = np.concatenate([similarity_GG[np.triu_indices(len(similarity_GG), 1)] for similarity_GG in kernels])
    low, q1, middle, q3, high = np.quantile(values, (0, 0.05, 0.5, 0.95, 1))
    lines = [f"{file}: {len(groups)} groups, {len(values)} pairs, embedder {dra.embedder}",
             f"similarity: {low:.3f} to {high:.3f}, median {middle:.3f}, 90 % of the pairs in {q1:.3f} to {q3:.3f}",
             *about_cut(cut, groups), *notes]
    auc = same_label_auc(list(zip(kernels, labels)))
    if auc is not None:
        lines.append(f"AUC of similarity, same against different label: {auc:.3f} (0.5 knows nothing, 1 knows all)")
    rights = [[completion["correct"] for completion in group["completions"]] for group in groups]
    lines += ["", f"{'sharpen':>8}{'weight ratio':>14}{'SMI ~ count':>13}{'density ~ share':>17}{'mean density':>14}"
                  f"{'mean share':>12}"]
    for sharpen in sorted({1.0, 2.0, 4.0, 8.0, dra.sharpen}) if dra.clamp and dra.smi == "graph_cut" else [dra.sharpen]:
        found = estimates(kernels, labels, rights, replace(dra, sharpen=sharpen))
        line = f"{sharpen:>8g}{found.ratio:>14.3f}"
        if found.rank is not None and len(set(found.shares)) > 1:
            line += (f"{found.rank:>+13.3f}{pearsonr(found.densities, found.shares).statistic:>+17.3f}"
                     f"{np.mean(found.densities):>14.3f}{np.mean(found.shares):>12.3f}")
        lines.append(line + (" <- dra.sharpen" if sharpen == dra.sharpen else ""))
    lines += ["", "weight ratio: largest over smallest weight of a group, mean over groups",
              "SMI ~ count: Spearman of SMI and the number of completions with the same label in the group, mean "
              "over groups",
              "density ~ share: Pearson of (1 + SMI) / G and the label's share of its group, over all completions; "
              "where the one estimates the other, their means are equal"]
    if auc is None:
        known = {name for names in labels for name in names} - {None}
        return "\n".join([*lines, f"no group has pairs of one label and of two ({len(known)} different labels in all), "
                                  "so nothing can be said of them" if known else
                          "without labels nothing more can be said: label completions with --label path.py:function"])
    verdict = ("tells the labels apart" if auc >= 0.9 else "tells the labels apart in part" if auc >= 0.7 else
               "hardly tells the labels apart: DRA would reweight by something else")
    return "\n".join([*lines, f"this embedder {verdict} (AUC {auc:.2f})"])
