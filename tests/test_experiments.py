"""experiments/: rules by brute force, the bandit by other means, decompositions by hand, a runner that continues."""
import itertools
import math
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import ROOT
from scipy.stats import ttest_rel

import files
from answers import Grade
from experiments import bandit, controls, kernels, rules, runs, tables
from experiments.__main__ import all_tables, main
from metrics import pass_at_k
from reward import cosine_similarity, diversity_weights, dra_advantages, group_advantages
from real_lm import task
from tiny_chain import task as chain

# ------------------------------------------------------------------------------------------------ the bandit


def test_the_push_of_each_rule_is_that_of_the_table():
    """All 6,435 groups of 8 over 4 strategies; figures worked out before by separate code, shares .4 .3 .2 .1."""
    assert len(bandit.groups()[0]) == math.comb(15, 7) == 6435
    known = {                                           # true kernel; cosine .757; the same at skill .95
        "grpo": ((0, 0, 0), (0.0243, 0.0243)), "dra": ((-0.132, -0.030, -0.171), (0.0172, 0.0239)),
        "advantage": ((-0.036, -0.026, -0.010), (0.0239, 0.0240)),
        "zero_sum": ((-0.038, -0.027, -0.023), (0.0239, 0.0240)),
        "additive": ((-0.015, -0.010, -0.018), (0.0241, 0.0242)), "passk": ((0, 0, 0), (0.0009, 0.0009)),
        "Dr. GRPO": ((0, 0, 0), (0.0116, 0.0116)), "Dr. GRPO, DRA": ((-0.045, -0.001, -0.002), (0.0043, 0.0017))}
    for name, (drifts, gains) in known.items():
        found = [bandit.push(bandit.RULES[name], base, skill)
                 for base, skill in ((0, 0.7), (0.757, 0.7), (0.757, 0.95))]
        assert [drift for drift, _ in found] == pytest.approx(drifts, abs=1.1e-3), name
        assert [gain for _, gain in found[:2]] == pytest.approx(gains, abs=6e-5), name


def test_gradients_are_the_sum_over_all_sequences(monkeypatch):
    """Groups of 3 as sequences, one after the other: 8^3, each with the product of its probabilities."""
    monkeypatch.setattr(bandit, "G", 3)
    bandit.groups.cache_clear()
    p, q = torch.tensor([0.5, 0.2, 0.2, 0.1]).double(), torch.tensor([0.9, 0.5, 0.3, 0.6]).double()
    theta, phi, total = torch.zeros(4).double(), torch.zeros(4).double(), 0.0
    for group in itertools.product(range(4), (1, 0), repeat=3):
        modes, right = torch.tensor(group[::2]), torch.tensor(group[1::2]).double()
        chance = (p[modes] * torch.where(right > 0, q[modes], 1 - q[modes])).prod()
        kernel = torch.where(modes[:, None] == modes, 1.0, 0.4).double()
        advantages, total = bandit.dra(kernel, right, sharpen=2.0), total + chance
        for mode, correct, advantage in zip(modes, right, advantages):
            theta += chance * advantage * (torch.eye(4).double()[mode] - p) / 3
            phi[mode] += chance * advantage * (correct - q[mode]) / 3
    try:
        found = bandit.gradients(bandit.dra(bandit.similarity(0.4), bandit.groups()[-1], sharpen=2.0), p, q)
    finally:
        monkeypatch.undo()
        bandit.groups.cache_clear()
    assert total == pytest.approx(1)
    torch.testing.assert_close(found, (theta, phi))


def test_predictions_stand_next_to_what_was_measured():
    """A strategy's push by enumeration, from the shares and skills of the record; arms without a rule are left out."""
    record = {"labels": {"a": 40, "b": 30, "c": 20, "d": 10, "None": 5},
              "strategies": {"a": 28, "b": 21, "c": 14, "d": 7}}
    train = {"push": {"a": -0.0123, "b": 0.001}}
    results = [tables.Result([{"setting": "s", "arm": arm, "seed": 0}, record, record, train]) for arm in ("dra", "kl")]
    text = bandit.beside_runs(results, {"settings": {"s": {"arms": ["kl", "dra"]}}}, "s")
    theta, _ = bandit.gradients(bandit.dra(bandit.similarity(0.757), bandit.groups()[-1]), torch.tensor(bandit.SHARES),
                                torch.full((4,), 0.7))
    expected = [f"{a:+.1f} / {1000 * b:+.1f}" for a, b in zip((-7.78, 4.39, 2.26, 1.13), theta.tolist())]
    assert text.splitlines()[2:] == [f"| DRA, published | {' | '.join(expected)} |"]


# ------------------------------------------------------------------------------------------------ rules


@pytest.fixture
def given():
    """What a rule gets for 40 groups of 6: some all right, some all wrong."""
    generator = torch.Generator().manual_seed(0)
    correct = torch.rand(40, 6, generator=generator) < torch.linspace(0, 1, 40)[:, None]
    correct[0], correct[-1] = False, True
    rewards = correct.float()
    return {"similarity": cosine_similarity(torch.rand(40, 6, 5, generator=generator)), "correct": correct,
            "rewards": rewards, "scale": "std", "advantages": group_advantages(rewards),
            "logprobs": -10 * torch.rand(40, 6, generator=generator),
            "lengths": torch.randint(5, 50, (40, 6), generator=generator),
            "texts": ["so \\boxed{3}"] * 240, "rows": [{"problem": "1+2"}] * 40}


RULES = ["zero_sum", "ucpo", "additive", "setpo", "passk", "unlikeliness", "darling", "mmr", "oracle_reward",
         "oracle_advantage", "bonus_alone", "shuffled_reward", "shuffled_advantage"]
BONUS_1 = ["oracle_advantage", "bonus_alone", "shuffled_advantage"]


@pytest.mark.parametrize("name", RULES)
def test_a_rule_gives_finite_advantages_that_permute(name, given):
    """Of sum 0, or of 1 an answer in groups that are all right for those with a bonus. Groups that are all wrong get
    nothing (but from MMR, which pushes all completions apart, in the order of ties); all others something (but from
    pass@k training, which is content with three right ones)."""
    rule = getattr(rules, name)
    found = rule(**given)
    assert found.shape == (40, 6) and found.isfinite().all() and found.is_floating_point()
    total = 6.0 * given["correct"].all(-1) * (name in BONUS_1)
    torch.testing.assert_close(found.sum(-1), total, atol=1e-4, rtol=0)
    assert (found[0] == 0).all() or name == "mmr"
    mixed = given["correct"].any(-1) & ~given["correct"].all(-1)
    assert (found[mixed].abs().amax(-1) > 0.01).all() or name == "passk"
    if "shuffled" in name or "oracle" in name or name == "mmr":
        return                                          # they go by the order of completions, or by texts
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    permuted = {key: value[:, order] if isinstance(value, torch.Tensor) else value for key, value in given.items()}
    permuted["similarity"] = given["similarity"][:, order][:, :, order]
    torch.testing.assert_close(rule(**permuted), found[:, order], atol=1e-5, rtol=1e-5)


def test_every_arm_of_the_plan_is_a_rule_or_a_setting():
    plan = runs.read_plan()
    named = {override.rpartition(":")[2] for arm in plan["arms"].values() for override in arm if "rules.py" in override}
    assert named == set(RULES) and set(plan["arms"]) <= set(tables.NAMES)


def test_ucpo_by_hand():
    """Two right ones whose mean log-probs differ by log 3: 1/q shares 3/4 and 1/4, of which tau = 0.2 counts."""
    logprobs, lengths = torch.tensor([[-2.0 * math.log(3), 0.0, -9.0]]), torch.tensor([[2, 3, 5]])
    correct, advantages = torch.tensor([[True, True, False]]), torch.tensor([[0.5, 0.5, -1.0]])
    found = rules.ucpo(advantages=advantages, correct=correct, logprobs=logprobs, lengths=lengths)
    torch.testing.assert_close(found, torch.tensor([[0.5 * (0.8 + 0.4 * 0.75), 0.5 * (0.8 + 0.4 * 0.25), -1.0]]))


def test_passk_is_the_mean_over_subsets():
    """Of each completion's subsets of 4, whether one is right; minus the mean over all subsets, over their std."""
    for right in range(9):
        correct = torch.arange(8) < right
        subsets = list(itertools.combinations(range(8), 4))
        best = [float(any(correct[i] for i in subset)) for subset in subsets]
        mean = sum(best) / len(best)
        assert mean == pytest.approx(pass_at_k(8, right, 4))
        std = math.sqrt(mean * (1 - mean))
        for i in range(8):
            own = [value for subset, value in zip(subsets, best) if i in subset]
            expected = (sum(own) / len(own) - mean) / std if std else 0.0
            assert rules.passk(correct=correct[None])[0, i].item() == pytest.approx(expected, abs=1e-6)


def test_unlikeliness_and_darling_by_hand(given):
    """The least likely right answer keeps its reward, the most likely of 4 loses 0.25 x 3 / 4; DARLING's most distant
    one keeps it, clones of each other share."""
    found = rules.unlikeliness(rewards=torch.ones(1, 4), scale="none", logprobs=torch.tensor([[-4.0, -1, -9, -2]]),
                               lengths=torch.tensor([[2, 1, 3, 2]]))      # means -2, -1, -3, -1: ranks 1, 2, 0, 3
    torch.testing.assert_close(found, group_advantages(1 - 0.0625 * torch.tensor([[1.0, 2, 0, 3]]), "none"))
    similarity = torch.tensor([[[1.0, 1, 0], [1, 1, 0], [0, 0, 1]]])
    found = rules.darling(rewards=torch.tensor([[1.0, 0, 1]]), similarity=similarity)
    torch.testing.assert_close(found, group_advantages(torch.tensor([[0.5, 0, 1]]), "none"))


def test_mmr_is_the_greedy_loop(given):
    """One completion after the other, group by group."""
    for group, found in enumerate(rules.mmr(**given)):
        rewards, similarity = given["rewards"][group], given["similarity"][group]
        weight, left, chosen, values = torch.sigmoid(rewards.std()), list(range(6)), [], torch.zeros(6)
        while left:
            marginal = {i: weight * rewards[i] - (1 - weight) * max((similarity[i, j] for j in chosen), default=0.0)
                        for i in left}
            best = max(left, key=lambda i: marginal[i].item())
            values[best] = marginal[best]
            chosen.append(best)
            left.remove(best)
        torch.testing.assert_close(found, group_advantages(values), atol=1e-5, rtol=1e-5)


def test_shuffled_weights_are_the_same_weights(given):
    """Of the right answers among themselves, and other ones at most places."""
    plain = dra_advantages(given["rewards"], given["similarity"], given["correct"], apply="advantage", sharpen=8.0,
                           bonus=1.0)[-1]
    found = rules.shuffled_advantage(**given)
    torch.testing.assert_close(found.sort(-1).values, plain.sort(-1).values)
    assert (found - plain).abs().max() > 0.01
    weights = diversity_weights(given["similarity"])
    turned = group_advantages(given["rewards"] * weights[:, [5, 0, 1, 2, 3, 4]])
    torch.testing.assert_close(rules.shuffled_reward(**given), turned)


def test_the_true_kernel_knows_strategies_of_both_tasks():
    """A completion of no strategy is like no other."""
    texts = ["1+2=3, 3+3=6, then 6+4=10, so \\boxed{10}", "1 and 2 make 4, 4+3=7, 7+4=11, so \\boxed{11}", "2+3=5",
             "2+3", "ones 1+2=3, tens 1+1+0=2, so \\boxed{23}",
             "tens 10+10=20, ones 1+2=3, both 20+3=23, so \\boxed{23}",
             "ones 1+2=3, tens 1+1+0=3, so \\boxed{33}", "no"]
    assert rules.strategies(texts[:4], [{"problem": "1+2+3+4"}]) == ["first", "first", None, None]
    assert rules.strategies(texts[4:], [{"problem": "11+12"}]) == ["columns", "splitting", "columns", None]
    one = torch.tensor([[1.0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    assert torch.equal(rules.same_strategy(texts[:4], [{"problem": "1+2+3+4"}]), one[None])
    two = rules.same_strategy(texts[:4] * 2, [{"problem": "1+2+3+4"}] * 2)
    assert torch.equal(two, torch.stack((one, one)))
    correct, rewards = torch.tensor([[True, True, True, False]]), torch.tensor([[1.0, 1, 1, 0]])
    found = rules.oracle_advantage(rewards=rewards, correct=correct, scale="none", texts=texts[:4],
                                   rows=[{"problem": "1+2+3+4"}])
    torch.testing.assert_close(found, torch.tensor([[0.1875, 0.1875, 0.375, -0.75]]))


# ------------------------------------------------------------------------------------------------ controls


def test_wrong_pairs_are_those_of_the_official_recipe():
    """Two groups of 6 on three processes of 4: prompts 0000, 0011 and 1111, and nothing across processes."""
    embeddings = torch.rand(12, 3, generator=torch.Generator().manual_seed(0))
    cosines = torch.nn.functional.normalize(embeddings, dim=-1)
    expected = [sum(float(cosines[i] @ cosines[j]) for j in range(12) if j // 4 == i // 4 and j != i)
                for i in range(12)]
    torch.testing.assert_close(controls.process_smi(embeddings, 6), torch.tensor(expected))


def test_wrong_pairs_do_not_know_the_size_of_their_process():
    """Clones have one SMI and so one weight, whether 5 or 6 of a group of 8 are on a process."""
    torch.testing.assert_close(controls.process_smi(torch.ones(128, 3), 8), torch.full((128,), 16 / 3 - 1))


def test_wrong_pairs_mix_prompts_and_split_groups():
    """Two right groups of 6: a text of the second moves the weights of the first one's last two, and one of these does
    not move those of the first four."""
    texts = [f"{i}+{i * i}={i}, so \\boxed{{{i}}}" for i in range(12)]

    def differences(changed: int) -> torch.Tensor:
        found = controls.wrong_pairs(rewards=torch.ones(2, 6), scale="none", rows=[{"problem": "1+2+3+4"}] * 2,
                                     texts=[*texts[:changed], "12345", *texts[changed + 1:]])
        return found[0] - found[0, 0]                   # without the mean, which all of the group have in common

    assert (differences(7)[4:] != differences(11)[4:]).all() and (differences(5)[:4] == differences(11)[:4]).all()


def test_partial_credit_counts_right_additions():
    texts = ["1+2=3, 3 and 3 make 7, then 7+4=11, so \\boxed{11}", "1+2=3, 3+3=6, 6+4=10, so \\boxed{10}", "none"]
    grades = [Grade(False, "", None), Grade(True, "", None), Grade(False, "", None)]
    assert controls.partial_credit(texts=texts, grades=grades) == [pytest.approx(1 / 3), 1.0, 0.0]


# ------------------------------------------------------------------------------------------------ kernels


def test_what_a_kernel_knows_by_hand():
    """Two problems of 32 samples, half a and half b, all b wrong. The true kernel knows all; log-det orders as well and
    counts nothing; one without differences knows nothing."""
    labels, rights = ["a", "b"] * 32, [True, False] * 32
    true = (torch.arange(32)[:, None] % 2 == torch.arange(32) % 2).double().numpy()
    auc, *smi = kernels.knowledge(np.stack([true, true]), labels, rights)
    assert auc == {"kind": "auc", "all": 1.0, "right": None}        # no two right ones of different labels
    assert [(line["group"], line["power"]) for line in smi] == list(itertools.product(kernels.SIZES, kernels.POWERS))
    for line in smi:
        assert line["spearman"] is None and line["share"] == 0.5        # both labels are equally common
        assert line["density"] == pytest.approx(0.5) or line["power"] == "log-det"
    mixed = [*"aaab" * 8, *"aabb" * 8]
    kernel = np.stack([np.equal.outer(np.array(one), np.array(one)) for one in (mixed[:32], mixed[32:])]).astype(float)
    _, *smi = kernels.knowledge(0.5 + kernel / 2, mixed, [True] * 64)
    four = {line["power"]: line for line in smi if line["group"] == 4}
    assert {power: line["spearman"] for power, line in four.items()} == dict.fromkeys(kernels.POWERS, pytest.approx(1))
    assert four["1"]["share"] == pytest.approx((0.75 * 3 + 0.25 + 0.5 * 4) / 8)
    assert four["1"]["density"] == pytest.approx((0.875 * 3 + 0.625 + 0.75 * 4) / 8)
    assert four["1"]["pearson"] == pytest.approx(1)


def test_surface_pairs_differ_in_what_they_say():
    """Chain: the same strategy in the other notation, another one in the same. Questions: right by the loose rule and
    not by the strict one; another item."""
    row = {"problem": "3+7+1+5", "answer": "16"}
    triples = kernels.written([row])
    assert len(triples) == 12
    for one, other, another in triples:
        assert chain.strategy(one, row) == chain.strategy(other, row) != chain.strategy(another, row)
        assert "and" in other and "and" not in one + another and chain.correct([one, other, another], [row] * 3)
    fruit = {"category": "fruit", "items": ["apple", "kiwi|kiwifruit", "fig"]}
    for one, around, another in kernels.answered([fruit]):
        assert task.item(one, fruit) == task.item_among(around, fruit) != task.item(another, fruit)
        assert task.item(around, fruit) is None and task.item(another, fruit) is not None


def test_what_is_paid_for_surface_by_hand():
    """One of eight right answers at cosine c to seven copies: 1 + SMI is 1 + 7 c against 7 + c."""
    vectors = {"plain": [1.0, 0.0], "around": [0.6, 0.8], "other": [0.8, 0.6]}
    found = kernels.surface([("plain", "around", "other")], lambda texts, _: torch.tensor([vectors[t] for t in texts]),
                            lambda text, **_: {"input_ids": []})
    assert (found["same"], found["another"], found["surface_counts_more"]) == (pytest.approx(0.6),
                                                                               pytest.approx(0.8), 1.0)
    for name, c in (("same", 0.6), ("another", 0.8)):
        weights = torch.tensor([1 / (1 + 7 * c), *[1 / (7 + c)] * 7])
        assert found[f"dr_{name}"] == pytest.approx(float(weights[0] - weights.mean()), abs=1e-6)
        assert found[f"dra_{name}"] == pytest.approx(float(group_advantages(weights)[0]), abs=1e-5)
        assert 2 < found[f"dra_{name}"] < 7 / math.sqrt(8)
        weights = torch.tensor([1 / (1 + 7 * c**8), *[1 / (7 + c**8)] * 7])
        assert found[f"shared_{name}"] == pytest.approx(float(8 * weights[0] / weights.sum()), abs=1e-5)


def test_official_pairs_are_compared_with_the_groups_own():
    """Groups whose processes see what the group would: the same advantages; wrong answers and groups of less than six
    right ones stay out."""
    circle = torch.tensor([[1.0, 0], [1, 0.1], [1, 0.2], [1, 0.3], [0, 1], [1, 0.5], [-1, 0]])
    rights = [True] * 6 + [False]
    found = kernels.official_pairs(torch.stack([circle, circle, circle]), rights * 2 + [False] + rights[1:])
    assert found["groups"] == 2
    own = group_advantages(diversity_weights(cosine_similarity(circle[:6])))
    cosines = cosine_similarity(circle[[*range(6)] * 2])
    official = group_advantages(torch.tensor([1 / cosines[i, i // 4 * 4:i // 4 * 4 + 4].sum() for i in range(12)])
                                .view(2, 6))
    assert found["wrong_sign"] == pytest.approx(float((official * own < 0).float().mean()))
    assert found["correlation"] == pytest.approx(float(np.corrcoef(official.flatten(), own.repeat(2))[0, 1]), abs=1e-6)


@pytest.mark.parametrize("task_name", kernels.TASKS)
def test_kernels_are_measured_on_the_tasks_own_samples(task_name):
    """A few completions: every kernel has all figures, and the true one knows everything."""
    lines = list(kernels.of_task(task_name, problems=2, samples=32))
    assert {line["kernel"] for line in lines} - {"MiniLM"} == {"token counts", "policy", kernels.TRUE}
    assert all(line["all"] == 1 for line in lines if line["kind"] == "auc" and line["kernel"] == kernels.TRUE)
    assert set(kernels.tables(lines)) == {"kernels", "kernels by size", "surface", "official pairs"}
    assert all(math.isfinite(value) for line in lines for value in line.values() if isinstance(value, float))


def test_figures_that_cannot_be_measured_here_stay(tmp_path, monkeypatch):
    """Without the folders of real_lm.make the committed figures of the open questions are kept, others are replaced."""
    line = {"task": "chain", "kernel": "policy", "kind": "auc", "all": 0.5, "right": None}
    old = [line, {**line, "task": "questions"}]
    monkeypatch.setattr(kernels, "FIGURES", tmp_path / "kernels.jsonl")
    monkeypatch.setattr(kernels, "of_task", lambda task: [{**line, "all": 0.75}] if task == "chain" else [])
    monkeypatch.setattr(kernels, "POLICY", tmp_path / "none")
    (tmp_path / "kernels.jsonl").write_bytes(files.json_lines(old))
    kernels.measure()
    assert kernels.figures() == [{**line, "all": 0.75}, old[1]]


# ------------------------------------------------------------------------------------------------ the runner


@pytest.fixture
def small(tmp_path, monkeypatch):
    """(runs, run folder, folder of records) with the stand-in in the trainer's place."""
    monkeypatch.setattr(runs, "PROGRAM", [sys.executable, "tests/stand_in_run.py"])
    plan = [runs.Run("s", arm, seed, "configs/chain.toml", ()) for seed in (0, 1) for arm in ("grpo", "dra")]
    return plan, tmp_path / "runs", tmp_path / "records"


def test_runs_are_made_once_and_leave_a_record(small, capsys):
    """Two at a time, at most so many, the rest by the next call; a run that fails does not stop the others."""
    plan, folder, records = small
    assert runs.make(plan, folder, records, jobs=2, most=3) == 0
    assert sorted(path.stem for path in records.iterdir()) == ["s-dra-seed0", "s-grpo-seed0", "s-grpo-seed1"]
    assert list(folder.iterdir()) == [], "run folders are gone"
    written = {path: path.stat().st_mtime_ns for path in records.iterdir()}
    failing = runs.Run("s", "grpo", 9, "configs/chain.toml", ())
    assert runs.make([failing, *plan], folder, records, keep=True) == 1
    assert "s-grpo-seed9 ended with 2: error: this seed is refused" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in written} == written and len(list(records.iterdir())) == 4
    assert (folder / "s-dra-seed1" / "metrics.jsonl").exists(), "--keep"


def test_a_record_of_other_settings_is_refused(small):
    """The plan has changed: a table must not mix both."""
    plan, folder, records = small
    runs.make(plan[:1], folder, records)
    changed = runs.Run("s", "grpo", 0, "configs/chain.toml", ("learner.lr=1",))
    with pytest.raises(ValueError, match="s-grpo-seed0.jsonl was made with .*learner.lr=1"):
        runs.make([changed], folder, records)


def test_a_stopped_runner_continues_its_runs(small):
    """SIGTERM in the middle of two runs: both end, neither has a record; the next call does only what is missing."""
    plan, folder, records = small
    folder.mkdir()
    (folder / "STOP_AT").write_text("2")
    code = (f"import sys; sys.path.insert(0, '.'); from pathlib import Path; from experiments import runs; "
            f"runs.PROGRAM = [sys.executable, 'tests/stand_in_run.py']; "
            f"runs.make([runs.Run('s', arm, 0, '', ()) for arm in ('grpo', 'dra')], Path('{folder}'), "
            f"Path('{records}'), jobs=2)")
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.DEVNULL)
    made = [folder / f"s-{arm}-seed0" / "steps.txt" for arm in ("grpo", "dra")]
    deadline = time.monotonic() + 100
    while not all(path.exists() and len(path.read_text().splitlines()) == 2 for path in made):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.terminate()
    assert process.wait() == 128 + 15 and not records.exists()
    (folder / "STOP_AT").unlink()
    assert runs.make(plan[:2], folder, records, keep=True) == 0
    assert [path.read_text().splitlines() for path in made] == [["0", "1", "2", "3"]] * 2, "no step was made twice"


def test_the_record_of_a_run_by_hand(small):
    """Means over the second half of the steps, and where the advantages of its groups went."""
    plan, folder, records = small
    runs.make(plan[2:3], folder, records)
    (result,) = tables.read_records(records)
    assert (result.setting, result.arm, result.seed) == ("s", "grpo", 1)
    assert (result.before["accuracy"], result.accuracy, result.kept) == (0.5, 0.7, 0.8)
    train = result.train
    assert (train["steps"], train["from"], train["accuracy"], train["step_s"]) == (4, 3, 0.35, 3.0)
    # group 3: right +1 and -0.5 of |A| 2; group 4: all right, 0 is not below 0
    assert train["right_pushed_down"] == pytest.approx(3 / 6, abs=1e-5)
    assert train["abs_right_down"] == pytest.approx(1.5 / 4) and train["abs_all_right"] == pytest.approx(2 / 4)
    assert train["groups_all_right"] == 0.5 and train["push"] == {"a": 0.125, "b": -0.125, "None": 0.0}
    assert train["curves"]["entropy"][0] == pytest.approx(1 / 3, abs=1e-6) and train["curves"]["accuracy"][1] is None


def test_the_plan_is_made_seed_by_seed():
    plan = runs.read_plan()
    order = runs.runs_of(plan)
    assert [run.seed for run in order] == sorted(run.seed for run in order)
    assert len({run.name for run in order}) == len(order)
    first = [run for run in order if run.seed == 0]
    assert [run.setting for run in first] == [name for name, s in plan["settings"].items() for _ in s["arms"]]
    quick = runs.runs_of(plan, quick=True)
    assert len(quick) == 6 and all("run.steps=20" in run.overrides for run in quick)
    assert len(runs.runs_of(plan, seeds=1)) == len(first)


def test_arms_that_are_not_there_and_bad_settings_are_refused(tmp_path):
    text = (ROOT / "experiments/plan.toml").read_text()
    for old, new, words in (('arms = ["grpo", "dra",', 'arms = ["gpro", "dra",', "gpro"),
                            ('dra_sharp = ["dra.sharpen=8"]', 'dra_sharp = ["dra.sharpn=8"]', "dra.sharpn")):
        (tmp_path / "plan.toml").write_text(text.replace(old, new))
        with pytest.raises(ValueError, match=words):
            runs.read_plan(tmp_path / "plan.toml")


# ------------------------------------------------------------------------------------------------ tables


def evaluation(**labels) -> dict:
    """An evaluation's record; each label as (samples, right)."""
    return {"labels": {label: n for label, (n, _) in labels.items()},
            "strategies": {label: right for label, (_, right) in labels.items()}}


def test_decomposition_by_hand():
    """Only the mix moves; only the skill; both, and a strategy that dies: the parts add up to the change."""
    before = evaluation(a=(50, 40), b=(50, 20))
    assert tables.decompose(before, evaluation(a=(100, 80), b=(100, 40))) == (0, 0)
    assert tables.decompose(before, evaluation(a=(75, 60), b=(25, 10))) == pytest.approx((0.25 * 0.8 - 0.25 * 0.4, 0))
    assert tables.decompose(before, evaluation(a=(50, 45), b=(50, 30))) == pytest.approx((0, 0.15))
    after = evaluation(a=(90, 81), c=(10, 5))
    selection, skill = tables.decompose(before, after)
    assert selection + skill == pytest.approx(0.86 - 0.6)
    assert skill == pytest.approx(0.7 * 0.1) and selection == pytest.approx(0.4 * 0.85 - 0.5 * 0.4 + 0.1 * 0.5)


def test_intervals_are_students():
    """Paired by seed, as scipy has it; seeds that only one of them has stay out."""
    one, other = [0.91, 0.93, 0.92, 0.95], [0.92, 0.92, 0.93, 0.93]
    values = [a - b for a, b in zip(one, other)]
    known = ttest_rel(one, other).confidence_interval(0.95)
    assert tables.interval(values) == pytest.approx((known.high - known.low) / 2)
    assert tables.interval([1.0]) is None and tables.interval([]) is None
    assert tables.paired({0: 1.0, 2: 5.0}, {0: 0.5, 1: 7.0}, float) == [0.5]


def made_up(arm: str, seed: int, accuracy: float, strategies: float) -> tables.Result:
    record = evaluation(a=(60, 30), b=(40, 20)) | {
        "accuracy": accuracy, "effective_strategies": strategies, "effective_strategies_pooled": 2.0,
        "pass_at_k": {"1": accuracy, "8": 0.9, "32": 1.0}}
    train = {"kind": "train", "entropy": 0.1, "groups_all_right": 0.5, "right_pushed_down": 0.25, "abs_right_down": 0.1,
             "abs_all_right": 0.2, "step_s": 0.3}
    about = {"kind": "run", "setting": "chain_grpo", "arm": arm, "seed": seed}
    return tables.Result([about, record | {"effective_strategies": 3.0}, record, train])


def test_tables_say_what_was_reached(tmp_path):
    """The goal needs the interval's lower end, not the mean, and the strategies; four seeds decide nothing."""
    plan = {"settings": {"chain_grpo": {"title": "t", "arms": ["grpo", "dra", "advantage", "ucpo", "passk"]}}}
    results = [made_up("grpo", seed, 0.92, 2.4) for seed in range(5)]
    results += [made_up("dra", seed, accuracy, 3.1) for seed, accuracy in enumerate((0.91, 0.93, 0.92, 0.91, 0.93))]
    near = (0.919, 0.92, 0.921, 0.919, 0.921)
    results += [made_up("advantage", seed, accuracy, 2.9) for seed, accuracy in enumerate(near)]
    results += [made_up("ucpo", seed, 0.92, 2.6) for seed in range(5)]
    results += [made_up("passk", seed, 0.92, 3.0) for seed in range(4)]
    found = tables.tables(results, plan)
    assert set(found) == {"chain_grpo outcome", "chain_grpo why", "chain_grpo mixes"}
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in found["chain_grpo outcome"].splitlines()]
    assert [row[-1] for row in rows[2:]] == ["-", "no", "yes", "no", "?"]
    assert rows[2][:7] == ["plain", "5", "0.920 (0.000)", "-", "2.40 (0.00)", "80%", "2.00"]
    assert rows[3][3] == "+0.00 ± 1.24" and rows[6][3] == "+0.00 ± 0.00"
    assert tables.front(results, plan, tmp_path / "front.png", ["chain_grpo"])
    assert (tmp_path / "front.png").stat().st_size > 10_000
    assert not tables.front([], plan, tmp_path / "none.png", ["chain_grpo"])


def test_tables_stand_between_their_markers():
    page = "a\n<!-- table: x why -->\nold\n<!-- end -->\nb\n<!-- table: y why -->\n<!-- end -->\n"
    filled = tables.fill(page, {"x why": "| new |"})
    assert "old" not in filled and "| new |" in filled and "No runs yet." in filled and filled.startswith("a\n")
    assert tables.fill(filled, {"x why": "| new |"}) == filled


def test_a_file_that_is_no_record_is_named(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"kind": "run"}\n')
    with pytest.raises(ValueError, match="x.jsonl"):
        tables.read_records(tmp_path)


def test_the_page_shows_the_committed_records():
    """docs/experiments.md is what `python -m experiments tables` makes of experiments/records/, all of them runs of the
    plan as it is."""
    page, plan, records = (ROOT / "docs/experiments.md").read_text("utf-8"), runs.read_plan(), ROOT / runs.RECORDS
    made = [run.name for run in runs.runs_of(plan) if runs.done(run, records)]
    assert sorted(made) == sorted(path.stem for path in records.glob("*.jsonl"))
    assert tables.fill(page, all_tables(tables.read_records(records), plan)) == page


# ------------------------------------------------------------------------------------------------ the commands


def test_words_that_name_no_run_are_refused():
    for words, error in ((["--only", "nothing"], "nothing"), (["--jobs", "0"], "--jobs")):
        with pytest.raises(ValueError, match=error):
            main(["run", *words])


@pytest.mark.slow
@pytest.mark.smoke
@pytest.mark.parametrize("arm", ["grpo", "advantage_bonus", "ucpo", "oracle_reward"])
def test_a_real_run_leaves_a_whole_record(arm, tmp_path):
    """The trainer itself, two steps: nothing that a table reads is missing."""
    setting = "chain_grpo_fast"
    (run,) = [run for run in runs.runs_of(runs.read_plan(), seeds=1) if (run.setting, run.arm) == (setting, arm)]
    short = ("run.steps=2", "eval.samples=16", 'eval.benchmarks=["tests/fixtures/chain.jsonl"]')
    run = runs.Run(run.setting, run.arm, run.seed, run.config, (*run.overrides, *short))
    assert runs.make([run], tmp_path / "runs", tmp_path / "records") == 0
    found = all_tables(tables.read_records(tmp_path / "records"), runs.read_plan())
    assert all(f"| {tables.name_of(arm)} | " in found[f"{setting} {part}"] for part in ("outcome", "why", "mixes"))
