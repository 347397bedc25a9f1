"""integrations/: TRL for real, on one rank and on two; verl and OpenRLHF in the shapes of test_trainers.py (slow)."""
import functools
import json
import math
import os
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT
from test_learner import torchrun
from transformers import AutoTokenizer

from answers import grade
from embedder import Embedder
from integrations import openrlhf_reward, verl_manager, verl_reward
from integrations.trl_reward import DraReward
from reward import DraConfig, adjust_rewards, cosine_similarity, dra_advantages, group_advantages

DRA = DraConfig(embedder="tiny/embedder", sharpen=2.0)
# cosines between 0 and 0.97
TEXTS = ["ones 7+8=15, tens 5, so \\boxed{85}", "round 40+40=80, less 3, so \\boxed{77}", "so \\boxed{85}",
         "ones 7+8=15, tens 6, so \\boxed{85}", "tens 10, 20, 30", "round 9+1=10, tens 4", "ones 1",
         "tens 10, 20, 30, 40", "less 2, so \\boxed{2}", "so \\boxed{3}", "round 3, so \\boxed{3}",
         "less 3, so \\boxed{2}"]
REWARDS = [1.0, 0.5, 1.0, 1.0, 2.0, -1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 3.0]


@functools.cache
def embedder() -> Embedder:
    return Embedder("tiny/embedder")


def adjusted(texts: list[str], rewards: list[float], groups: list, **options) -> torch.Tensor:
    """DRA of every group on its own, in the order given."""
    result = torch.tensor(rewards)
    for group in dict.fromkeys(groups):
        rows = [i for i, other in enumerate(groups) if other == group]
        if len(rows) > 1:
            similarity = cosine_similarity(embedder().encode([texts[i] for i in rows]))
            result[rows] = adjust_rewards(result[rows], similarity, **options)
    assert not torch.equal(result, torch.tensor(rewards)), "DRA changes something"
    return result


# ------------------------------------------------------------------------------------------------ TRL


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_trl_ends_up_with_our_advantages(ranks, tmp_path):
    """The example of docs/rewards.md, two steps and an evaluation with another group size.

    DRA of the recorded texts, group by group, to 1e-5.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path / "hf")}
    if ranks == 1:
        result = subprocess.run([sys.executable, "tests/trl_example.py", str(tmp_path)], capture_output=True, text=True,
                                env=environment)
    else:
        result = torchrun(ranks, "tests/trl_example.py", str(tmp_path), env=environment)
    assert result.returncode == 0, result.stderr[-3000:]
    outputs = [json.loads((tmp_path / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(ranks)]
    accuracies = []
    for record in (record for output in outputs for record in output["records"]):
        G = 4 if record["training"] else 2
        correct = [grade(text, answer).correct for text, answer in zip(record["texts"], record["answers"])]
        total = torch.tensor([c + 0.1 * (1 - length / 64) for c, length in zip(correct, record["lengths"])]).view(-1, G)
        similarity = cosine_similarity(embedder().encode(record["texts"]).view(len(total), G, -1))
        expected = group_advantages(adjust_rewards(total, similarity))
        torch.testing.assert_close(torch.tensor(record["advantages"]), expected.flatten(), rtol=1e-5, atol=1e-5)
        assert all(len(set(record["prompts"][i : i + G])) == 1 for i in range(0, len(total) * G, G))
        if record["training"]:
            assert (group_advantages(total) - expected).abs().max() > 0.01, "DRA changes something"
            accuracies.append(sum(correct) / len(correct))
    assert len(accuracies) == 2 * ranks
    assert {len(record["texts"]) for output in outputs for record in output["records"] if record["training"]} == {12}
    assert [step["dra/accuracy"] for step in outputs[0]["logged"]] == pytest.approx(
        [sum(accuracies[i::2]) / ranks for i in range(2)])
    assert len({output["moved"] for output in outputs}) == 1 and outputs[0]["moved"] > 1e-5
    remedy = "per_device_train_batch_size = 3 a multiple of 2 or steps_per_generation = 2 a multiple of 4"
    assert remedy in outputs[0]["refusal"]


class Trainer:
    """As much of TRL's trainer as a reward function can see: its method."""

    def __init__(self, training: bool = True):
        self.model, self.logged = SimpleNamespace(training=training), {}

    def log_metric(self, name: str, value: float) -> None:
        self.logged[name] = value


def grpo_config(**settings) -> SimpleNamespace:
    return SimpleNamespace(**{**dict(num_generations=6, num_generations_eval=None, per_device_train_batch_size=4,
                                     steps_per_generation=3, eval_strategy="no",
                                     per_device_eval_batch_size=8, multi_objective_aggregation="sum_then_normalize",
                                     reward_weights=None), **settings})


def test_trl_adds_up_with_none_as_trl_does():
    """A function's None counts as 0; a completion that no function scores has no reward and is nobody's neighbour."""
    def first(completions, **_):
        return [None if i in (2, 4) else reward for i, reward in enumerate(REWARDS)]

    def second(**_):
        return [None if i in (4, 5) else 1 for i in range(12)]

    config, trainer = grpo_config(reward_weights=[1.0, 0.5]), Trainer()
    reward = DraReward(config, [first, second], DRA)
    values = reward(prompts=["a"] * 6 + ["b"] * 6, completions=TEXTS, completion_ids=None,
                    log_metric=trainer.log_metric, answer=None)
    assert config.reward_weights == [1.0], "what is left for TRL to weigh"
    total = [value + 0.5 for value in REWARDS]
    total[2], total[5] = 0.5, REWARDS[5]
    scored = [i for i in range(12) if i != 4]
    expected = adjusted([TEXTS[i] for i in scored], [total[i] for i in scored], [i // 6 for i in scored], sharpen=2.0)
    assert values[4] is None
    torch.testing.assert_close(torch.tensor([values[i] for i in scored]), expected)
    assert trainer.logged == pytest.approx({"dra/first": sum(REWARDS[i] for i in range(12) if i not in (2, 4)) / 10,
                                            "dra/second": 1.0, "dra/total": sum(total[i] for i in scored) / 11})


def test_trl_evaluation_has_its_own_group_size():
    """Of three, whatever training has; of one, where nothing can be compared; conversations are read like texts."""
    def base(**_):
        return REWARDS

    chat = [[{"role": "assistant", "content": text}] for text in TEXTS]
    for G, expected in ((3, adjusted(TEXTS, REWARDS, [i // 3 for i in range(12)], sharpen=2.0)),
                        (1, torch.tensor(REWARDS))):
        reward = DraReward(grpo_config(num_generations_eval=G), [base], DRA)
        values = reward(prompts=[[{"role": "user", "content": str(i // G)}] for i in range(12)], completions=chat,
                        log_metric=Trainer(False).log_metric)
        torch.testing.assert_close(torch.tensor(values), expected)


def test_the_readmes_trl_lines_build_a_trainer():
    """The README's short example hands DRA of both functions, already weighted, to TRL."""
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    block = next(block for block in page.split("```python\n") if "GRPOTrainer(" in block).split("```")[0]
    names = {"GRPOConfig": lambda folder, **options: grpo_config(per_device_train_batch_size=16, **options),
             "data": None,
             "GRPOTrainer": lambda policy, reward, config, data: SimpleNamespace(reward=reward, config=config),
             "accuracy": lambda **_: REWARDS[:8], "brevity": lambda **_: REWARDS[4:]}
    exec(block, names)
    values = names["trainer"].reward(prompts=["a"] * 8, completions=TEXTS[:8], log_metric=Trainer().log_metric)
    total = [first + 0.1 * second for first, second in zip(REWARDS[:8], REWARDS[4:])]
    torch.testing.assert_close(torch.tensor(values), adjusted(TEXTS[:8], total, [0] * 8))
    assert names["trainer"].config.reward_weights == [1.0]


@pytest.mark.parametrize(("settings", "words"), [
    ({"num_generations": 8},
     "12 completions on a rank.*num_generations = 8.*per_device_train_batch_size = 4 a multiple of 8 or "
                             "steps_per_generation = 3 a multiple of 2"),
    ({"eval_strategy": "steps"},
     "8 completions on a rank.*num_generations_eval = 6.*per_device_eval_batch_size = 8 a multiple of 6"),
    ({"multi_objective_aggregation": "normalize_then_sum"}, "normalize_then_sum.*sum_then_normalize"),
    ({"reward_weights": [1.0, 2.0]}, "2 entries for 1 reward"),
])
def test_trl_refuses_what_dra_cannot_do(settings, words):
    with pytest.raises(ValueError, match=words):
        DraReward(grpo_config(**settings), [len], DRA)


def test_trl_refuses_functions_and_batches_that_do_not_fit():
    async def later(**_):
        return [0.0] * 12

    for function in (later, torch.nn.Linear(1, 1), "a/reward-model"):
        with pytest.raises(ValueError, match="plain Python functions"):
            DraReward(grpo_config(), [function], DRA)
    for prompts, words in ((["a"] * 5 + ["b"] * 7, "completions 0 to 5 .* not one group of 6"),
                           (["a"] * 9, "completions 6 to 11 of a rank's 9"), (["a"] * 12, "11 values for 12")):
        with pytest.raises(ValueError, match=words):
            DraReward(grpo_config(), [lambda prompts, **_: [0.0] * 11], DRA)(prompts=prompts, completions=prompts,
                                                                             log_metric=Trainer().log_metric)


@pytest.mark.parametrize(("options", "words"),
                         [({"weights": "x.py:f"}, "dra.weights"), ({"advantages": "x.py:f"}, "dra.advantages"),
                          ({"text": "answer"}, "dra.text"), ({"smi": "log_det", "sharpen": 2.0}, "log_det"),
                          ({"bonus": 0.1}, "apply = advantage")])
def test_options_are_refused_before_anything_is_sampled(options, words):
    with pytest.raises(ValueError, match=words):
        DraReward(grpo_config(), [len], DraConfig(embedder="tiny/embedder", **options))


# ------------------------------------------------------------------------------------------------ apply = "advantage"


@pytest.mark.parametrize("scale", ["std", "none"])
def test_advantages_are_handed_over_as_rewards(scale):
    """Their group's sum is 0, so a trainer that only subtracts the mean keeps them: reward.py's, of whole groups."""
    dra = DraConfig(embedder="tiny/embedder", sharpen=2.0, apply="advantage", bonus=0.1)
    reward = DraReward(grpo_config(scale_rewards="none"), [lambda **_: REWARDS], dra, scale=scale)
    values = torch.tensor(reward(prompts=["a"] * 6 + ["b"] * 6, completions=TEXTS, log_metric=Trainer().log_metric))
    rewards = torch.tensor(REWARDS).view(2, 6)
    similarity = cosine_similarity(embedder().encode(TEXTS).view(2, 6, -1))
    *_, expected = dra_advantages(rewards, similarity, rewards > 0, scale, apply="advantage", sharpen=2.0, bonus=0.1)
    torch.testing.assert_close(values.view(2, 6), expected)
    torch.testing.assert_close(group_advantages(values.view(2, 6), "none"), expected, rtol=1e-5, atol=1e-6)
    assert (expected - group_advantages(rewards, scale)).abs().max() > 0.01, "and they are no longer GRPO's"


def test_trainers_that_would_divide_again_are_refused():
    """By the name of their own setting, wherever an adapter can see it."""
    dra = DraConfig(embedder="tiny/embedder", apply="advantage")
    for scale_rewards in ("group", "batch", True):
        with pytest.raises(ValueError, match="scale_rewards"):
            DraReward(grpo_config(scale_rewards=scale_rewards), [len], dra)
    advantage = SimpleNamespace(estimator="group_norm")
    args = SimpleNamespace(rollout=SimpleNamespace(n_samples_per_prompt=2), algo=SimpleNamespace(advantage=advantage))
    maker = openrlhf_reward.with_dra(type("Maker", (), {"__init__": lambda self: setattr(self, "args", args)}), dra)
    with pytest.raises(ValueError, match="dr_grpo"):
        maker()
    advantage.estimator = "dr_grpo"
    assert maker().adjust.scale == "std"


# ------------------------------------------------------------------------------------------------ verl, OpenRLHF


def padded(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, L) ids and mask; padding has id 0, with which completions end too."""
    longest = max(map(len, rows)) + 2
    fill = [[0] * (longest - len(row)) for row in rows]
    mask = [[1] * len(row) + [0] * len(pad) for row, pad in zip(rows, fill)]
    return torch.tensor([row + pad for row, pad in zip(rows, fill)]), torch.tensor(mask)


def verl_batch(tokenizer, order: list[int], uids: list[str]) -> SimpleNamespace:
    """A DataProto's fields after generation and `balance_batch`: rows in `order`, scores where they end."""
    responses, mask = padded([tokenizer.encode(TEXTS[i]) + [0] for i in order])
    scores = torch.zeros(responses.shape)
    scores[range(len(order)), mask.sum(-1) - 1] = torch.tensor([REWARDS[i] for i in order])
    return SimpleNamespace(batch={"responses": responses, "response_mask": mask, "rm_scores": scores}, meta_info={},
                           non_tensor_batch={"uid": np.array([uids[i] for i in order], dtype=object)})


def by_function(data: SimpleNamespace) -> torch.Tensor:
    return verl_reward.with_dra(lambda batch: (batch.batch["rm_scores"], {}), DRA, "tiny/policy")(data)[0]


def by_manager(data: SimpleNamespace) -> torch.Tensor:
    class Manager:
        def __init__(self, tokenizer):
            self.tokenizer = tokenizer

        def __call__(self, data, return_dict=False):
            return {"reward_tensor": data.batch["rm_scores"]} if return_dict else data.batch["rm_scores"]

    return verl_manager.with_dra(Manager, DRA)(AutoTokenizer.from_pretrained("tiny/policy"))(data)


@pytest.mark.parametrize("scores_of", [by_function, by_manager])
def test_verl_groups_by_uid_wherever_rows_stand(scores_of):
    """Groups of four, five, two and one, rows in any order; the score stands at the end-of-sequence token only."""
    tokenizer, uids = AutoTokenizer.from_pretrained("tiny/policy"), [*"aaaabbbbbccd"]
    expected = adjusted(TEXTS, REWARDS, uids, sharpen=2.0)
    order = [5, 0, 11, 9, 3, 7, 1, 10, 2, 6, 4, 8]
    data = verl_batch(tokenizer, order, uids)
    before = data.batch["rm_scores"].clone()
    scores, last = scores_of(data), data.batch["response_mask"].sum(-1) - 1
    torch.testing.assert_close(scores, torch.zeros_like(before).scatter_(1, last[:, None], expected[order][:, None]))
    assert torch.equal(data.batch["rm_scores"], before), "the batch's own stay"
    data.meta_info["validate"] = True
    assert torch.equal(scores_of(data), before), "a validation reports plain scores"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_verl_refuses_a_score_that_is_not_finite(value):
    """It would make the advantages of its whole group so, silently."""
    data = verl_batch(AutoTokenizer.from_pretrained("tiny/policy"), list(range(12)), [*"aaaabbbbcccc"])
    data.batch["rm_scores"][4, 0] = value
    with pytest.raises(ValueError, match=f"completion 4 of 12, group 'b', is {value}; .*tens 10, 20, 30"):
        by_function(data)


def test_verl_v1_adjusts_the_last_output_of_each_session(monkeypatch):
    """Keys in any order, a session of two outputs, a row tagged as padding; the store gets its old rewards back."""
    class Fields(dict):
        def select(self, *names):
            return {name: self[name] for name in names}

    def nested(rows):
        return torch.nested.as_nested_tensor(rows, layout=torch.jagged)

    tokenizer = AutoTokenizer.from_pretrained("tiny/policy")
    rows = [("b_0_0", 1), ("a_1_0", 2), ("a_0_1", 0), ("a_9_0", 3), ("b_1_0", 4), ("a_0_0", 5), ("a_2_0", 3)]
    tokens = [torch.tensor([*tokenizer.encode(TEXTS[i]), 0]) for _, i in rows]
    score = {"a_0": REWARDS[0], "a_1": REWARDS[2], "a_2": REWARDS[3], "b_0": REWARDS[1], "b_1": REWARDS[4], "a_9": 0.0}
    masks = [torch.ones_like(ids) for ids in tokens]
    scores = [torch.tensor([0.0] * (len(ids) - 1) + [score[key[:-2]]]) for (key, _), ids in zip(rows, tokens)]
    store = {"uid": [key.split("_")[0] for key, _ in rows], "responses": nested(tokens), "response_mask": nested(masks),
             "rm_scores": nested(scores)}
    queue, tensordict, seen = ModuleType("transfer_queue"), ModuleType("tensordict"), []
    queue.kv_batch_get = lambda keys, partition_id, select_fields: Fields({name: store[name] for name in select_fields})
    queue.kv_batch_put = lambda keys, partition_id, fields: store.update(fields)
    tensordict.TensorDict = lambda fields, batch_size: fields
    monkeypatch.setitem(sys.modules, "transfer_queue", queue)
    monkeypatch.setitem(sys.modules, "tensordict", tensordict)
    monkeypatch.delitem(sys.modules, "integrations.verl_v1", raising=False)
    from integrations.verl_v1 import with_dra

    class Trainer:
        def __init__(self, config):
            self.tokenizer = tokenizer

        def _compute_advantage(self, batch, metrics):
            seen.extend(row.sum().item() for row in store["rm_scores"].unbind())
            return batch

    def config(n):
        return SimpleNamespace(actor_rollout_ref=SimpleNamespace(rollout=SimpleNamespace(n=n)))

    batch = SimpleNamespace(keys=[key for key, _ in rows], partition_id="train",
                            tags=[{"is_padding": key == "a_9_0"} for key, _ in rows])
    assert with_dra(Trainer, DRA)(config(3))._compute_advantage(batch, {}) is batch
    sessions = ["a_0", "a_1", "a_2", "b_0", "b_1"]
    raw = [score[session] for session in sessions]
    new = adjusted([TEXTS[i] for i in (0, 2, 3, 1, 4)], raw, [*"aaabb"], sharpen=2.0)
    value = {**dict(zip(sessions, new.tolist())), "a_9": 0.0}
    assert seen == pytest.approx([value[key[:-2]] for key, _ in rows])
    assert all(torch.equal(row, old) for row, old in zip(store["rm_scores"].unbind(), scores))
    with pytest.raises(ValueError, match="at least 2 of each, not 1"):
        with_dra(Trainer, DRA)(config(1))


class RemoteExperienceMaker:
    """As much of OpenRLHF's as the adapter calls."""

    def __init__(self, strategy, tokenizer):
        self.args, self.tokenizer = strategy.args, tokenizer

    def compute_advantages_and_returns(self, experiences):
        return experiences


def openrlhf_experience(tokenizer, rows: list[int]) -> SimpleNamespace:
    """A micro-batch; action_mask has a column less than the sequences. Rewards come in bf16 from a reward model."""
    prompts = [f"{10 + row // 4}+7" for row in rows]
    answers = [tokenizer.encode(TEXTS[row]) + [0] for row in rows]
    sequences, mask = padded([tokenizer.encode(prompt) + answer for prompt, answer in zip(prompts, answers)])
    action_mask = torch.zeros_like(mask)
    for i, (prompt, answer) in enumerate(zip(prompts, answers)):
        start = len(tokenizer.encode(prompt))
        action_mask[i, start : start + len(answer)] = 1
    rewards = torch.tensor([REWARDS[row] for row in rows], dtype=torch.bfloat16)
    return SimpleNamespace(sequences=sequences, action_mask=action_mask[:, 1:], index=rows, prompts=prompts,
                           rewards=rewards, info={"reward": rewards})


def test_openrlhf_groups_by_index_wherever_rows_stand():
    """Dynamic batches hold parts of groups in any order; rows of one group that answer two prompts are refused."""
    tokenizer, rollout = AutoTokenizer.from_pretrained("tiny/policy"), SimpleNamespace(n_samples_per_prompt=4)
    strategy = SimpleNamespace(args=SimpleNamespace(rollout=rollout))
    maker = openrlhf_reward.with_dra(RemoteExperienceMaker, DRA)(strategy, tokenizer)
    expected = adjusted(TEXTS, REWARDS, [i // 4 for i in range(12)], sharpen=2.0)
    batches = [[5, 0, 11], [9], [3, 7, 1, 10, 2, 6], [4, 8]]
    experiences = [openrlhf_experience(tokenizer, rows) for rows in batches]
    for rows, experience in zip(batches, maker.compute_advantages_and_returns(experiences), strict=True):
        torch.testing.assert_close(experience.rewards, expected[rows])
        assert experience.info["reward_before_dra"].tolist() == [REWARDS[row] for row in rows]
    wrong = openrlhf_experience(tokenizer, list(range(12)))
    wrong.prompts[3] = "another"
    with pytest.raises(ValueError, match="n_samples_per_prompt = 4 answer different prompts"):
        maker.compute_advantages_and_returns([wrong])


def test_without_dra_rewards_are_the_plain_total():
    """dra.enabled = false is the baseline, and loads no embedder."""
    reward = DraReward(grpo_config(reward_weights=[2.0]), [lambda **_: REWARDS],
                       DraConfig(enabled=False, embedder="none"))
    values = reward(prompts=["a"] * 6 + ["b"] * 6, completions=TEXTS, log_metric=Trainer().log_metric)
    assert values == [2 * value for value in REWARDS] and not any(map(math.isnan, values))
