"""The learner: its objective against the papers' equations, and updates that depend on nothing but the rows."""
import json
import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from updates import rows_for, updated

from dra_grpo import prompts_for_step
from learner import (Learner, LearnerConfig, Row, kl_k3, lr_at, micro_batches, policy_loss, rows_in_loss,
                     token_weights)
from model import ModelConfig, Transformer
from sampler import Completion, Sampler, SamplerConfig

TINY = "tiny/policy"
# float32 at the tiny recipe's rate: rounding in a gradient near 0 turns into a difference of up to lr through Adam
JOBS = [{"model": TINY, "dtype": dtype, "lr": lr,
         "learner": {"loss": loss, "kl_beta": beta, "updates_per_rollout": passes, "micro_batch_tokens": budget}}
        for dtype, lr, loss, beta, passes, budget in (("float64", 1e-3, "grpo", 0.1, 2, 10**6),
                                                      ("float64", 1e-3, "dr_grpo", 0.0, 1, 60),
                                                      ("float64", 1e-3, "dapo", 0.1, 2, 60),
                                                      ("float32", 1e-4, "grpo", 0.1, 1, 60))]
JOBS.append({**JOBS[0], "without": [1, 3]})             # left out: the second of two ranks, two of four, have no row
JOBS.append({**JOBS[2], "learner": {**JOBS[2]["learner"], "offload": True}})
JOBS.append({**JOBS[1], "zero": [1, 3]})                # no advantage: the same ranks have rows and no micro-batch


def torchrun(ranks: int, script: str, *arguments: str, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), script,
               *arguments]
    return subprocess.run(command, capture_output=True, text=True, **options)


def assert_same(a: dict, b: dict, dtype: str) -> None:
    """float64: 1e-9 per tensor norm; float32: 1e-6 over the whole vector."""
    if dtype == "float64":
        for name in a:
            assert (a[name] - b[name]).norm() <= 1e-9 * a[name].norm(), name
    else:
        flat = [torch.cat([tensor.flatten() for tensor in x.values()]) for x in (a, b)]
        assert (flat[0] - flat[1]).norm() <= 1e-6 * flat[0].norm()


def learner_for(dtype: str = "float32", temperature: float = 1.0, max_new_tokens: int = 32, weights_from=None,
                **settings) -> Learner:
    return Learner(ModelConfig(TINY, dtype), LearnerConfig(**settings), TINY, torch.device("cpu"), 297, temperature,
                   max_new_tokens, weights_from)


@pytest.fixture(scope="module")
def single():
    return [updated(job, 0, 1) for job in JOBS]


def values(figures: dict[str, float]) -> dict[str, float]:
    """Without the seconds, which no two updates share."""
    return {key: value for key, value in figures.items() if not key.endswith("_s")}


def test_passes_that_keep_ranks_in_step_change_nothing(monkeypatch):
    """Another rank has three micro-batches more, and its collectives wait for this one.

    As many passes are made here, and they count nowhere.
    """
    rows = [row for group in rows_for(0, 3, 3) for row in group]
    results = []
    for more in (0, 3):
        learner, passes = learner_for("float64", micro_batch_tokens=60), []
        monkeypatch.setattr("learner.max_over_ranks", lambda value: value + more if isinstance(value, int) else value)
        stream_logprobs = learner.policy.stream_logprobs
        monkeypatch.setattr(learner.policy, "stream_logprobs",
                            lambda *arguments: passes.append(1) or stream_logprobs(*arguments))
        figures = learner.update(rows, lr=1e-3)
        results.append((len(passes), figures, list(learner.policy.parameters())))
    (few, figures, weights), (many, same_figures, same_weights) = results
    assert many == few + 3 and values(same_figures) == values(figures) and all(map(torch.equal, weights, same_weights))


@pytest.mark.parametrize("change", [{"budget": 40}, {"budget": 200}, {"reverse": True}, {"checkpointing": True}],
                         ids=str)
def test_update_does_not_depend_on_batching(single, change):
    """Micro-batch budget, order of rows and groups, activation checkpointing."""
    for job, (expected, _) in zip(JOBS, single):
        learner = {**job["learner"], "micro_batch_tokens": change.get("budget", 10**6)}
        assert_same(expected, updated({**job, **change, "learner": learner}, 0, 1)[0], job["dtype"])


def moved(learner: Learner) -> Learner:
    """Takes the policy away from the reference, so that the KL term is not 0."""
    with torch.no_grad():
        for i, parameter in enumerate(learner.policy.parameters()):
            parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i),
                                            dtype=parameter.dtype)
    return learner


def log_softmax(model: Transformer, prompt: list[int], completion, temperature: float = 0.7) -> torch.Tensor:
    """(tokens of the completion, 297), one row at a time."""
    logits = model(torch.tensor([prompt + completion.tokens]))[0, len(prompt) - 1 : -1, :297]
    return (logits / temperature).log_softmax(-1)


def gradients_of(learner: Learner) -> list[dict]:
    """What the optimizer gets in each update from now on."""
    seen: list[dict] = []
    learner.optimizer.register_step_pre_hook(
        lambda *_: seen.append({name: p.grad.clone() for name, p in learner.policy.named_parameters()}))
    return seen


@pytest.mark.parametrize("beta", [0.3, 0.0])
@pytest.mark.parametrize("loss", ["grpo", "dr_grpo", "dapo"])
def test_gradient_equals_the_papers_equations(loss, beta):
    """One SGD-like step in float64 against sums over single rows and tokens, from the equations with dense softmax.

    Rows without advantage count in the denominators, whether a KL term makes them take part or not.
    """
    max_new = 32
    learner = moved(learner_for("float64", 0.7, max_new, loss=loss, kl_beta=beta, max_grad_norm=1e9))
    rows = [row._replace(advantage=row.advantage * (i % 4 > 0))
            for i, row in enumerate(row for group in rows_for(0, 3, 3) for row in group)]
    policy = Transformer.from_pretrained(TINY, torch.float64)
    policy.load_state_dict(learner.policy.state_dict())
    reference = Transformer.from_pretrained(TINY, torch.float64)

    def logprobs(model, prompt, completion):
        return log_softmax(model, prompt, completion)[torch.arange(len(completion.tokens)),
                                                      torch.tensor(completion.tokens)]

    objective = 0.0
    total_tokens = sum(len(c.tokens) for _, c, _ in rows)
    for prompt, completion, advantage in rows:
        logp = logprobs(policy, prompt, completion)
        with torch.no_grad():
            ref = logprobs(reference, prompt, completion)
        ratio = (logp - logp.detach()).exp()
        per_token = ratio * advantage - beta * ((ref - logp).exp() - (ref - logp) - 1)
        match loss:
            case "grpo":
                objective = objective + per_token.mean() / len(rows)
            case "dr_grpo":
                objective = objective + per_token.sum() / max_new / len(rows)
            case "dapo":
                objective = objective + per_token.sum() / total_tokens
    (-objective).backward()
    expected = {name: p.grad for name, p in policy.named_parameters()}

    gradients = gradients_of(learner)
    figures = learner.update(rows, lr=0.0)
    assert figures["loss"] == pytest.approx(-objective.item(), rel=1e-9)
    assert figures["rows"] == 9 and figures["passed_rows"] == (9 if beta else 6)
    for name in expected:
        assert (gradients[0][name] - expected[name]).norm() <= 1e-9 * expected[name].norm(), name


def test_gradient_is_clipped_and_starts_from_zero():
    """A second update on the same weights (rate 0) sees the same gradient.

    One whose limit is a quarter of its norm sees a quarter of it.
    """
    rows = [row for group in rows_for(0, 3, 3) for row in group]
    learner = learner_for("float64", max_grad_norm=1e9)
    gradients = gradients_of(learner)
    norms = [learner.update(rows, lr=0.0)["grad_norm"] for _ in range(2)]
    assert norms[0] == norms[1] and all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])
    assert norms[0] == pytest.approx(sum(g.square().sum().item() for g in gradients[0].values()) ** 0.5)
    clipped = learner_for("float64", max_grad_norm=norms[0] / 4)
    quarters = gradients_of(clipped)
    assert clipped.update(rows, lr=0.0)["grad_norm"] == norms[0], "reported before clipping"
    for name in gradients[0]:
        # torch adds 1e-6 to the norm
        torch.testing.assert_close(4 * quarters[0][name], gradients[0][name], rtol=1e-3, atol=0)


def test_figures_equal_sums_over_tokens():
    """KL and gap from dense softmaxes, row by row, over several micro-batches; entropy as the sampler has it.

    Gaps of +0.2 and -0.1 in turn must not cancel.
    """
    rows = [row for group in rows_for(0, 3, 3) for row in group]
    learner = moved(learner_for("float64", 0.7, kl_beta=0.3, micro_batch_tokens=60))
    reference, ratios, gaps, given = Transformer.from_pretrained(TINY, torch.float64), [], [], []
    for prompt, completion, advantage in rows:
        with torch.no_grad():
            dense, ref = log_softmax(learner.policy, prompt, completion), log_softmax(reference, prompt, completion)
        picked = torch.tensor(completion.tokens)[:, None]
        off = torch.where(torch.arange(len(picked)) % 2 == 0, 0.2, -0.1).double()
        ratios += (ref - dense).gather(-1, picked)[:, 0].tolist()
        gaps += off.abs().tolist()
        logprobs = (dense.gather(-1, picked)[:, 0] + off).tolist()
        given.append(Row(prompt, replace(completion, logprobs=logprobs), advantage))
    figures = learner.update(given, lr=0.0)
    expected = {"entropy": sum(1.0 for _ in given), "gap": sum(gaps), "clipped": 0.0,
                "kl": sum(math.exp(r) - r - 1 for r in ratios)}
    assert figures["rows"] == len(rows) and figures["gap_max"] == pytest.approx(0.2)
    for key, total in expected.items():
        assert figures[key] == pytest.approx(total / len(gaps), rel=1e-9), key


def test_a_learner_continues_bit_equal_from_its_checkpoint(tmp_path):
    """Moments, the step count for their bias correction, and the reference, which stays the initial policy.

    Two updates a step.
    """
    def rows(seed):
        return [row for group in rows_for(seed, 3, 3) for row in group]

    settings = dict(kl_beta=0.1, updates_per_rollout=2)
    learner = learner_for(**settings)
    for seed in range(2):
        learner.update(rows(seed), lr=1e-4)
    learner.save_policy(tmp_path)
    again = learner_for(weights_from=tmp_path, **settings)
    saved = learner.optimizer_state()
    for name, tensor in again.optimizer_state().items():
        tensor.copy_(saved[name])
    again.set_updates(learner.updates)
    assert values(again.update(rows(2), lr=1e-4)) == values(learner.update(rows(2), lr=1e-4))
    assert all(torch.equal(a, b) for a, b in zip(learner.policy.parameters(), again.policy.parameters()))
    assert again.updates == learner.updates == 6


def test_small_updates_are_not_lost_in_bfloat16():
    """At a rate of 1e-6 Adam moves every weight by about that, a hundredth of what bf16 can tell apart at 0.05.

    Master weights keep it.
    """
    learner = learner_for("bfloat16")
    before = {name: p.detach().clone() for name, p in learner.policy.named_parameters()}
    learner.update([row for group in rows_for(0, 3, 3) for row in group], lr=1e-6)
    for name, parameter in learner.policy.named_parameters():
        assert (parameter != before[name]).float().mean() > 0.9, name


def test_old_logprobs_stay_those_of_before_the_first_update():
    """In the second pass over a rollout ratios differ from 1, so all tokens leave a clip range of 1e-9.

    In a first pass none does.
    """
    rows = [row for group in rows_for(0, 3, 3) for row in group]
    clipped = []
    for passes in (1, 2):
        learner = learner_for("float64", updates_per_rollout=passes, clip_low=1e-9, clip_high=1e-9)
        clipped.append(learner.update(rows, lr=1e-3)["clipped"])
    assert clipped[0] == 0
    assert clipped[1] == pytest.approx(0.5, abs=0.01), "half of all passes, so all tokens of the second"


@pytest.mark.parametrize("rows_with_advantage", [4, 0])
def test_rows_without_advantage_need_no_pass(rows_with_advantage, monkeypatch):
    """The update is the one in which they have next to none: moments decay all the same, over two passes too."""
    groups, results = rows_for(1, 3, 3), []
    for little in (0.0, 1e-300):
        learner, tokens = learner_for("float64", updates_per_rollout=2, micro_batch_tokens=40), []
        stream_logprobs = learner.policy.stream_logprobs
        monkeypatch.setattr(learner.policy, "stream_logprobs", lambda stream, temperature: (
            tokens.append(len(stream.targets_M)), stream_logprobs(stream, temperature))[1])
        learner.update([row for group in rows_for(0, 3, 3) for row in group], lr=1e-3)
        tokens.clear()
        rows = [row for group in groups for row in group]
        rows = [row if i < rows_with_advantage else row._replace(advantage=little) for i, row in enumerate(rows)]
        figures = learner.update(rows, lr=1e-3)
        results.append((figures, sum(tokens), dict(learner.policy.named_parameters())))
    (figures, passed, weights), (all_figures, all_tokens, same_weights) = results
    if rows_with_advantage:                             # among other rows in a micro-batch, sums are rounded otherwise
        assert_same(weights, same_weights, "float64")
    else:
        assert all(map(torch.equal, weights.values(), same_weights.values()))
    assert all_tokens == 2 * sum(len(row.completion.tokens) for group in groups for row in group)
    assert passed == 2 * sum(len(row.completion.tokens) for row in rows[:rows_with_advantage])
    assert figures["rows"] == all_figures["rows"] == all_figures["passed_rows"] == 9
    assert figures["passed_rows"] == rows_with_advantage
    for key in ("loss", "grad_norm"):
        assert figures[key] == pytest.approx(all_figures[key], rel=1e-9, abs=1e-290), key


def test_entropy_is_the_samplers_over_all_rows_in_the_loss():
    """Exact entropies, from dense softmaxes, of rows that the update computes and of those that it does not."""
    learner, model = learner_for("float32", 0.7), Transformer.from_pretrained(TINY)
    model.n_tokens = 297
    prompts = [[5 + i, 6, 7] for i in range(4)]
    groups = Sampler(model, SamplerConfig(4, 32, 0.7), [0]).generate(prompts, 4, (0,))
    rows = [Row(prompt, completion, float(i)) for i, (prompt, group) in enumerate(zip(prompts, groups))
            for completion in group]
    dense = torch.cat([log_softmax(model, row.prompt, row.completion) for row in rows])
    figures = learner.update(rows, lr=0.0)
    assert figures["passed_rows"] == 12 and figures["rows"] == 16
    exact = torch.distributions.Categorical(logits=dense).entropy()
    assert figures["entropy"] == pytest.approx(exact.mean().item(), rel=1e-5) and exact.std() > 0.1
    assert figures["gap"] < 1e-6


def test_policy_loss_clips_by_hand():
    """Ratios 1.5 and 0.5 under clip 0.2 / 0.3: a gain is capped at 1.3 A, a loss is not.

    Gradient is 0 exactly where the cap binds.
    """
    logp = torch.tensor([[1.5, 0.5, 1.1], [1.5, 0.5, 1.1]]).log().requires_grad_()
    loss = policy_loss(logp, torch.zeros(2, 3), torch.tensor([2.0, -2.0]), clip_low=0.2, clip_high=0.3)
    torch.testing.assert_close(loss, torch.tensor([[-2.6, -1.0, -2.2], [3.0, 1.6, 2.2]]))
    loss.sum().backward()
    assert (logp.grad == 0).tolist() == [[True, False, False], [False, True, False]]


def test_kl_k3_is_zero_at_equality_and_unbiased():
    """Expectation over the policy's own tokens equals the KL divergence."""
    p, q = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64), torch.tensor([0.3, 0.3, 0.4], dtype=torch.float64)
    assert kl_k3(p.log(), p.log()).abs().max() == 0
    assert (p * kl_k3(p.log(), q.log())).sum().item() == pytest.approx((p * (p / q).log()).sum().item())


def test_token_weights_by_hand():
    mask = torch.tensor([[0.0, 1, 1, 1, 1], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0]])
    totals = dict(rows=6, tokens=20, max_new_tokens=10)
    assert torch.equal(token_weights(mask, "grpo", **totals),
                       torch.tensor([[0, 1, 1, 1, 1], [0, 0, 4, 0, 0], [0] * 5]) / 24)
    assert torch.equal(token_weights(mask, "dr_grpo", **totals), mask / 60)
    assert torch.equal(token_weights(mask, "dapo", **totals), mask / 20)
    with pytest.raises(ValueError, match="grpo, dr_grpo or dapo"):
        token_weights(mask, "ppo", **totals)


def row_of(prompt: int, tokens: int) -> Row:
    return Row([prompt] * 10, Completion([1] * tokens, [0.0] * tokens, "stop"), 1.0)


def sizes(batches: list[list[list[Row]]]) -> list[int]:
    return [sum(len(group[0].prompt) + sum(len(row.completion.tokens) - 1 for row in group) for group in batch)
            for batch in batches]


@pytest.mark.parametrize(("budget", "expected"), [
    (100, [74]),                                        # all of it: three prompts and 8 + 6, 0 + 9 + 10, 11 more
    (50, [50, 24]),                                     # the largest first: 29 and 21 fill the first
    (25, [24, 21, 20, 19]),                             # the group of 29 in two parts, each with the prompt
    (15, [20, 18, 21, 16, 19, 10]),                     # every completion exceeds it with its prompt
], ids=str)
def test_micro_batches_by_hand(budget, expected):
    """Groups stay together where they fit, and rows of a prompt find each other wherever they are."""
    rows = [row_of(prompt, tokens + 1) for prompt, tokens in ((1, 8), (2, 0), (1, 6), (2, 9), (3, 11), (2, 10))]
    batches = micro_batches(rows, budget)
    assert sorted(sizes(batches)) == sorted(expected)
    assert all(len({tuple(row.prompt) for row in group}) == 1 for batch in batches for group in batch)
    found = [row for batch in batches for group in batch for row in group]
    assert sorted(map(id, found)) == sorted(map(id, rows)), "every row once"


@pytest.mark.parametrize("budget", [16384, 65536])
def test_micro_batches_are_nearly_full(budget):
    """Groups of 8 with a median of 700 tokens and a tail of thousands: at most a tenth more passes than tokens need."""
    lengths = np.random.default_rng(0).lognormal(6.5, 0.6, 1024).clip(8, 3584).astype(int)
    rows = [row_of(i // 8, int(length)) for i, length in enumerate(lengths)]
    found = sizes(micro_batches(rows, budget))
    assert max(found) <= budget and len(found) <= 1.1 * -(-sum(found) // budget)


def test_rows_in_loss_by_hand():
    """Groups of two; the first has equal raw rewards, and every group has one truncated completion."""
    completions = [Completion([1], [0.0], "length" if i % 2 else "stop") for i in range(6)]
    rewards = torch.tensor([[1.0, 1], [0, 1], [1, 0.5]])
    for options, expected in (({}, [0, 1, 2, 3, 4, 5]), ({"mask_truncated": True}, [0, 2, 4]),
                              ({"drop_equal_groups": True}, [2, 3, 4, 5]),
                              ({"mask_truncated": True, "drop_equal_groups": True}, [2, 4])):
        assert rows_in_loss(completions, rewards, LearnerConfig(**options)) == expected


def test_an_update_without_rows_is_one_without_gradient():
    """Everything masked: no division by zero, and fresh moments leave the weights alone."""
    learner = learner_for()
    before = {name: p.clone() for name, p in learner.policy.named_parameters()}
    figures = learner.update([], lr=1e-3)
    assert figures["loss"] == figures["gap"] == figures["grad_norm"] == figures["rows"] == 0
    assert figures["entropy"] is None
    assert all(torch.equal(before[name], p) for name, p in learner.policy.named_parameters())


def test_prompts_for_step_is_a_pure_partition():
    """Ranks share each step's list, every epoch holds every row once, and epochs and seeds differ in order."""
    whole = [prompts_for_step(3, step, 0, 1, 10, 4) for step in range(10)]
    for step in range(10):
        parts = [prompts_for_step(3, step, rank, 3, 10, 4) for rank in range(3)]
        assert sorted(pair for part in parts for pair in part) == whole[step]
        assert [position for position, _ in whole[step]] == [0, 1, 2, 3]
    rows = [row for step in whole for _, row in step]
    assert all(sorted(rows[i : i + 10]) == list(range(10)) for i in range(0, 40, 10))
    assert rows[:10] != rows[10:20]
    assert rows != [row for step in range(10) for _, row in prompts_for_step(4, step, 0, 1, 10, 4)]


def test_lr_warms_up_and_ends_at_the_floor():
    config = LearnerConfig(lr=1.0, warmup=0.1, floor=0.1)
    rates = [lr_at(step, config, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == 1.0 and rates[-1] == pytest.approx(0.1)
    assert rates[54] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 44 / 89)))
    assert all(a >= b for a, b in zip(rates[10:], rates[11:]))
    flat = LearnerConfig(lr=1.0, warmup=0.0, schedule="constant")
    assert {lr_at(step, flat, 7) for step in range(7)} == {1.0}
    assert lr_at(0, LearnerConfig(lr=1.0, warmup=0.0), 1) == 1.0


def test_non_finite_loss_stops_before_the_weights_change():
    learner = learner_for()
    before = {name: p.clone() for name, p in learner.policy.named_parameters()}
    (prompt, completion, _), *rest = rows_for(0, 1, 3)[0]
    with pytest.raises(FloatingPointError, match="not finite"):
        learner.update([Row(prompt, completion, float("nan")), *rest], lr=1e-3)
    assert all(torch.equal(before[name], p) for name, p in learner.policy.named_parameters())


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def on_ranks(request, tmp_path_factory) -> tuple[list, list[int]]:
    """What updates.py writes on so many ranks: weights and figures of each job, and each rank's memory in a save."""
    path = tmp_path_factory.mktemp("ranks") / "out.pt"
    result = torchrun(request.param, "tests/updates.py", json.dumps(JOBS), str(path))
    assert result.returncode == 0, result.stderr[-3000:]
    return torch.load(path, weights_only=True)


def test_update_does_not_depend_on_the_number_of_ranks(on_ranks, single):
    """FSDP2 on gloo: three updates, all losses, ranks with different numbers of tokens, one-token rows, or none."""
    for job, (weights, figures), (expected, expected_figures) in zip(JOBS, on_ranks[0], single, strict=True):
        assert_same(expected, weights, job["dtype"])
        for mine, reference in zip(figures, expected_figures):
            for key in reference:
                if reference[key] is None:              # no reference, no KL
                    assert mine[key] is None, key
                else:
                    assert key.endswith("_s") or mine[key] == pytest.approx(reference[key], rel=1e-4, abs=1e-6), key


def test_only_the_first_rank_holds_what_a_checkpoint_gathers(on_ranks):
    """Every rank gathers each weight; if each saved all, a node of eight would hold eight 1.5B policies: 57 GB."""
    first, *others = on_ranks[1]
    assert first == len(list(learner_for().policy.parameters())) and max(others) <= 1
