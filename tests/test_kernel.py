"""report/kernel.py: against scipy, brute force over pairs and permutations, and kernels whose truth is known."""
import itertools
import json

import numpy as np
import pytest
from scipy.stats import spearmanr

from report import kernel
from report.__main__ import main
from report.kernel import consistency, different_orders, group_consistency, same_label_auc, spearman_power


def random_kernel(G: int, seed: int) -> np.ndarray:
    x_GD = np.random.default_rng(seed).normal(size=(G, 4))
    x_GD /= np.linalg.norm(x_GD, axis=1, keepdims=True)
    return x_GD @ x_GD.T


def pairs_of(rewards: list[float], similarity_GG: np.ndarray) -> tuple[list[float], list[float]]:
    pairs = list(itertools.combinations(range(len(rewards)), 2))
    return [abs(rewards[i] - rewards[j]) for i, j in pairs], [1 - similarity_GG[i, j] for i, j in pairs]


@pytest.mark.parametrize("seed, rewards", [(0, [0.1, 0.9, 0.4, 1.0, 0.3]), (1, [1.0, 0.0, 1.0, 0.0, 0.0]),
                                           (2, [0.0, 0.2, 0.4, 0.6, 0.8])])
def test_consistency_of_a_group_is_scipys_and_that_of_all_permutations(seed, rewards):
    """rho and p are scipy's; the permutation p is that over all 120 orders, within 4 standard errors of 999 draws.

    So is the share of naive alarms.
    """
    similarity_GG = random_kernel(5, seed)
    rho, p, p_permuted, alarms = group_consistency(rewards, similarity_GG, np.random.default_rng(0))
    expected = spearmanr(*pairs_of(rewards, similarity_GG))
    assert (rho, p) == (pytest.approx(expected.statistic), pytest.approx(expected.pvalue))
    every = [spearmanr(*pairs_of([rewards[i] for i in order], similarity_GG))
             for order in itertools.permutations(range(5))]
    share = np.mean([abs(result.statistic) >= abs(rho) - 1e-12 for result in every])
    assert p_permuted == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / 999) + 0.002)
    share = np.mean([result.pvalue < 0.05 for result in every])
    assert alarms == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / 999) + 0.002)


def test_groups_without_differences_have_no_correlation():
    assert group_consistency([1.0] * 4, random_kernel(4, 0), np.random.default_rng(0)) is None
    assert group_consistency([1.0, 0.0, 1.0, 0.0], np.ones((4, 4)), np.random.default_rng(0)) is None


@pytest.mark.parametrize("rewards",
                         [[1.0, 0, 0, 0, 0], [1.0, 1, 0, 0], [0.0, 0.5, 1.0], [0.0, 0.1, 1.0, 1.0], [1.0, 1.0]])
def test_orders_of_rewards_are_those_of_all_permutations(rewards):
    tables = {tuple(pairs_of(list(order), np.eye(len(rewards)))[0]) for order in itertools.permutations(rewards)}
    assert different_orders(rewards) == len(tables)


def test_power_is_that_of_simulated_tests():
    """Spearman's test on 800 normal samples of 28 independent pairs; the correlation of ranks is 6/pi asin(r/2).

    Off by 4 standard errors at most.
    """
    rng = np.random.default_rng(0)
    for rho in (0.0, 0.3, 0.6):
        r = 2 * np.sin(np.pi * rho / 6)
        x, e = rng.normal(size=(2, 800, 28))
        rejected = np.mean([spearmanr(a, r * a + np.sqrt(1 - r * r) * b).pvalue < 0.05 for a, b in zip(x, e)])
        assert spearman_power(rho, 28) == pytest.approx(rejected,
                                                        abs=4 * np.sqrt(rejected * (1 - rejected) / 800) + 0.01)
    assert spearman_power(0.9, 3) == 0 and spearman_power(-0.5, 15) == pytest.approx(spearman_power(0.5, 15))


def test_auc_counts_pairs_within_groups():
    """By brute force over pairs of pairs; a group on another level, or completions without a label, must not matter."""
    labels = ["a", "a", "b", "b", None, "a", "c"]
    similarity_GG = random_kernel(7, 3).round(1)                # ties
    known = [i for i in range(7) if labels[i]]
    pairs = [(similarity_GG[i, j], labels[i] == labels[j]) for i, j in itertools.combinations(known, 2)]
    wins = [(a > b) + (a == b) / 2 for a, same in pairs if same for b, other in pairs if not other]
    assert same_label_auc([(similarity_GG, labels)]) == pytest.approx(np.mean(wins))
    assert same_label_auc([(similarity_GG, labels), (similarity_GG + 5, labels)]) == pytest.approx(np.mean(wins))
    assert same_label_auc([(similarity_GG, ["a"] * 7), (similarity_GG, [None] * 7)]) is None


def write_groups(path, groups: list[list[tuple[str, str | None, float]]]) -> None:
    """Each completion is (text, label, reward)."""
    path.write_text("".join(json.dumps({"step": 1, "position": i, "id": i, "completions": [
        {"text": text, "correct": reward > 0, "reward": reward, "smi": 0, "weight": 1, "adjusted": reward,
         "advantage": 0, **({} if label is None else {"label": label})}
        for text, label, reward in group]}) + "\n" for i, group in enumerate(groups)))


def table(text: str) -> dict[str, list[float]]:
    """{sharpen: its numbers} of the kernel command."""
    rows = [line.replace(" <- dra.sharpen", "").split() for line in text.splitlines()]
    return {row[0]: [float(number) for number in row[1:]] for row in rows if row
            and row[0] in ("1", "2", "3", "4", "8")}


def test_the_kernel_that_knows_all_estimates_the_share(tmp_path, monkeypatch):
    """Similarity 1 within a label and 0 between: (1 + SMI) / G is the label's share, AUC 1, weights in the ratio of the
    counts (3 to 1, 2 to 1)."""
    write_groups(tmp_path / "samples.jsonl", [[(x, x, 1.0) for x in "aaab"], [(x, x, 1.0) for x in "abbc"]])
    monkeypatch.setattr(kernel, "similarities", lambda groups, dra: (
        [np.equal.outer(*[[c["label"] for c in group["completions"]]] * 2).astype(float) for group in groups], 0))
    text = kernel.kernel(tmp_path, [], 10, "")
    assert table(text)["1"] == [2.5, 1, 1, pytest.approx((0.75 * 3 + 0.25 * 3 + 0.5 * 2) / 8), pytest.approx(0.5)]
    assert "AUC 1.00" in text
    assert "similarity: 0.000 to 1.000" in text and "tells the labels apart (" in text


def test_a_kernel_of_something_else_is_told_apart_from_a_good_one(tmp_path, monkeypatch):
    """Three x and one y with similarity 1 and 0.5, by hand at sharpen 1 and 3: 1 + SMI is 3.5 and 2.5, then 3.125 and
    1.375; the labels are others."""
    write_groups(tmp_path / "samples.jsonl", [[(text, text[1], 1.0) for text in ("xa", "xa", "xb", "ya")]] * 3)
    monkeypatch.setattr(kernel, "similarities", lambda groups, dra: (
        [np.where(np.equal.outer(*[[c["text"][0] for c in group["completions"]]] * 2), 1.0, 0.5) for group in groups],
        0))
    text = kernel.kernel(tmp_path, ["dra.sharpen=3"], 10, "")
    found = {sharpen: (row[0], row[3]) for sharpen, row in table(text).items()}
    assert found["1"] == (1.4, pytest.approx(13 / 16, abs=6e-4))
    assert found["3"] == (2.273, pytest.approx((3 * 3.125 + 1.375) / 16, abs=6e-4))
    assert "hardly tells" in text and "(AUC 0.33)" in text and "0.625 <- dra.sharpen" in text


def test_labels_come_from_a_function_or_not_at_all(tmp_path, monkeypatch):
    write_groups(tmp_path / "samples.jsonl", [[("xa", None, 1.0), ("xa", None, 1.0), ("yb", None, 1.0)]])
    monkeypatch.setattr(kernel, "similarities",
                        lambda groups, dra: ([np.array([[1, 0.9, 0.1], [0.9, 1, 0.2], [0.1, 0.2, 1.0]])], 2))
    text = kernel.kernel(tmp_path, [], 10, "")
    assert "without labels nothing more" in text
    assert "of 2 of 3 completions the embedder read only the beginning" in text
    (tmp_path / "label.py").write_text("def label(text, record):\n    return text[1]\n\ndef same(text, record):\n    "
                                       "return 'same'\n")
    assert "(AUC 1.00)" in kernel.kernel(tmp_path, [], 10, f"{tmp_path}/label.py:label")
    assert "(1 different labels in all)" in kernel.kernel(tmp_path, [], 10, f"{tmp_path}/label.py:same")


def test_the_kernel_is_tested_as_the_run_used_it(tmp_path, monkeypatch):
    """With dra.scope = correct only the two right completions are neighbours: 1 + SMI is 1.5, 1.5 and 2 (ratio 4/3).

    All three: 2 each. What training refuses is refused.
    """
    write_groups(tmp_path / "samples.jsonl", [[("x", "a", 1.0), ("y", "a", 1.0), ("z", "b", 0.0)]])
    monkeypatch.setattr(kernel, "similarities", lambda groups, dra: ([np.full((3, 3), 0.5) + np.eye(3) / 2], 0))
    assert table(kernel.kernel(tmp_path, ["dra.scope=correct"], 10, ""))["1"][0] == 1.333
    assert table(kernel.kernel(tmp_path, [], 10, ""))["1"][0] == 1
    for overrides, words in ((["dra.smi=log_det", "dra.sharpen=2"], "does not go with sharpen"),
                             (["dra.weights=my.py:f"], "leave it empty")):
        with pytest.raises(ValueError, match=words):
            kernel.kernel(tmp_path, overrides, 10, "")


def test_commands_embed_with_the_embedder_of_the_run(tmp_path, capsys):
    """The tiny embedder on the tiny task: same sums in the same words are alike.

    Rewards that follow the words are consistent with them.
    """
    write_groups(tmp_path / "samples.jsonl",
                 [[("ones 4+0=4, tens 7", "c", 1.0), ("ones 4+0=4, tens 7", "c", 1.0), ("ones 4+0=4, tens 8", "c", 1.0),
                                                ("round 90+0=90", "r", 0.0), ("round 90+0=90, less", "r", 0.0),
                                                ("round 80+0=80", "r", 0.0)], [("a", "r", 1.0)]])
    (tmp_path / "config.toml").write_text('[dra]\nembedder = "tiny/embedder"\n')
    assert main(["kernel", str(tmp_path)]) == 0
    assert "1 groups, 15 pairs, embedder tiny/embedder" in (out := capsys.readouterr().out)
    assert "tells the labels apart (AUC 1.00)" in out
    assert main(["consistency", str(tmp_path / "samples.jsonl"), "--groups", "5", "dra.text=completion"]) == 0
    out = capsys.readouterr().out
    assert "leaves 1 to test" in out and "p < 0.05 in 100.0% of the groups" in out
    assert "so at most): 0.06 where rho is 0.1" in out
    # 3 of 6: 10
    assert "in 1 groups the rewards have at most 20 different orders" in out and "by permutation" not in out
    with pytest.raises(SystemExit):
        main(["consistency", str(tmp_path), "--groups", "5", "groups=3"])


def test_consistency_says_when_there_is_nothing_to_test(tmp_path, monkeypatch):
    write_groups(tmp_path / "samples.jsonl", [[("a", None, 1.0)] * 3])
    monkeypatch.setattr(kernel, "similarities", lambda groups, dra: ([np.ones((3, 3))], 0))
    assert consistency(tmp_path, [], 10).endswith("which leaves 0 to test")


def test_groups_are_spread_over_the_file(tmp_path):
    write_groups(tmp_path / "samples.jsonl", [[(str(i), None, 1.0)] * 2 for i in range(101)])
    assert [group["position"] for group in kernel.some_groups(tmp_path / "samples.jsonl", 3)] == [0, 50, 100]


def test_what_cannot_be_embedded_is_refused(tmp_path):
    write_groups(tmp_path / "samples.jsonl", [[("a", None, 1.0)] * 2])
    for overrides, words in ((["dra.embedder=policy"], "hidden states, which are not kept"),
                             (["dra.sharpn=2"], "did you mean 'dra.sharpen'"),
                             (["sharpen=2"], "not of the form dra.key=value")):
        with pytest.raises(ValueError, match=words):
            consistency(tmp_path, overrides, 10)
    with pytest.raises(ValueError, match="--groups must be >= 1"):
        consistency(tmp_path, [], 0)
    write_groups(tmp_path / "samples.jsonl", [[("a", None, 1.0)]])
    with pytest.raises(ValueError, match="no group of at least 2"):
        consistency(tmp_path, [], 5)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"0 files"):
        consistency(tmp_path / "empty", [], 10)
