"""integrations/: TRL for real, on one rank and on two; verl and OpenRLHF through what their sources call with.

Those two need GPUs to be installed.
"""
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
from integrations import openrlhf_reward, verl_reward
from integrations.trl_reward import DraReward
from reward import DraConfig, adjust_rewards, cosine_similarity, group_advantages

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


def example(words: str) -> str:
    """The Python block of docs/rewards.md with `words` in it."""
    page = (ROOT / "docs/rewards.md").read_text(encoding="utf-8")
    return next(block for block in page.split("```python\n") if words in block).split("```")[0]


# ------------------------------------------------------------------------------------------------ TRL


@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.slow), 2])
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
                         [({"weights": "x.py:f"}, "dra.weights"), ({"smi": "log_det", "sharpen": 2.0}, "log_det")])
def test_options_are_refused_before_anything_is_sampled(options, words):
    with pytest.raises(ValueError, match=words):
        DraReward(grpo_config(), [len], DraConfig(embedder="tiny/embedder", **options))


# ------------------------------------------------------------------------------------------------ verl


class NaiveRewardManager:
    """As in verl 0.6.1, but for what it prints."""

    def __init__(self, tokenizer, num_examine, compute_score=None, reward_fn_key="data_source"):
        self.tokenizer, self.compute_score, self.reward_fn_key = tokenizer, compute_score, reward_fn_key

    def __call__(self, data, return_dict=False):
        if "rm_scores" in data.batch:
            scores = data.batch["rm_scores"]
        else:
            scores = torch.zeros_like(data.batch["responses"], dtype=torch.float32)
            for i, item in enumerate(data.non_tensor_batch["reward_model"]):
                length = data.batch["attention_mask"][i, data.batch["prompts"].shape[-1] :].sum()
                text = self.tokenizer.decode(data.batch["responses"][i, :length], skip_special_tokens=True)
                scores[i, length - 1] = self.compute_score(data_source=data.non_tensor_batch[self.reward_fn_key][i],
                                                           solution_str=text,
                                                           ground_truth=item["ground_truth"], extra_info={})
        return {"reward_tensor": scores, "reward_extra_info": {"score": [1.0]}} if return_dict else scores


def padded(rows: list[list[int]], left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, L) ids and mask; padding has id 0, with which completions end too."""
    longest = max(map(len, rows)) + 2
    fill = [[0] * (longest - len(row)) for row in rows]
    ids = [pad + row if left else row + pad for row, pad in zip(rows, fill)]
    mask = [[0] * len(pad) + [1] * len(row) if left else [1] * len(row) + [0] * len(pad)
            for row, pad in zip(rows, fill)]
    return torch.tensor(ids), torch.tensor(mask)


def verl_batch(tokenizer, order: list[int], uids: list[str]) -> SimpleNamespace:
    """A DataProto's fields after generation and `balance_batch`: rows in `order`."""
    prompts, prompt_mask = padded([tokenizer.encode(f"{10 + i}+7") for i in order], left=True)
    responses, response_mask = padded([tokenizer.encode(TEXTS[i]) + [0] for i in order], left=False)
    return SimpleNamespace(
        batch={"prompts": prompts, "responses": responses,
               "attention_mask": torch.cat((prompt_mask, response_mask), -1)}, meta_info={},
        non_tensor_batch={"uid": np.array([uids[i] for i in order], dtype=object),
                          "data_source": np.array(["sums"] * len(order), dtype=object),
                          "reward_model": np.array([{"ground_truth": REWARDS[i]} for i in order], dtype=object)})


def test_verl_groups_by_uid_wherever_rows_stand():
    """Groups of four, five, two and one, in any order of rows.

    The score stands at the end-of-sequence token and nowhere else.
    """
    tokenizer = AutoTokenizer.from_pretrained("tiny/policy")
    uids = [*"aaaabbbbbccd"]
    manager = verl_reward.with_dra(NaiveRewardManager, DRA)(tokenizer=tokenizer, num_examine=0,
                                                            compute_score=lambda ground_truth, **_: ground_truth,
                                                            reward_fn_key="data_source")
    expected = adjusted(TEXTS, REWARDS, uids, sharpen=2.0)
    assert expected[11] == REWARDS[11]
    for order in (list(range(12)), [5, 0, 11, 9, 3, 7, 1, 10, 2, 6, 4, 8]):
        data = verl_batch(tokenizer, order, uids)
        scores = manager(data)
        assert scores.dtype == torch.float32 and scores.shape == data.batch["responses"].shape
        last = [len(tokenizer.encode(TEXTS[i])) for i in order]
        torch.testing.assert_close(scores[range(12), last], expected[order])
        scores[range(12), last] = 0
        assert not scores.any()
        assert manager(data, return_dict=True)["reward_extra_info"] == {"score": [1.0]}
        data.meta_info["validate"] = True
        assert manager(data).sum(-1).tolist() == [REWARDS[i] for i in order], "a validation reports plain scores"


def test_verl_adjusts_scores_that_came_with_the_batch():
    """rm_scores of a reward model, which stay as they are in the batch."""
    tokenizer, uids = AutoTokenizer.from_pretrained("tiny/policy"), [*"aaaabbbbcccc"]
    data = verl_batch(tokenizer, list(range(12)), uids)
    data.batch["rm_scores"] = torch.zeros_like(data.batch["responses"], dtype=torch.float32)
    data.batch["rm_scores"][:, 0] = torch.tensor(REWARDS)
    before = data.batch["rm_scores"].clone()
    scores = verl_reward.with_dra(NaiveRewardManager, DRA)(tokenizer, 0)(data)
    torch.testing.assert_close(scores.sum(-1), adjusted(TEXTS, REWARDS, uids, sharpen=2.0))
    assert torch.equal(data.batch["rm_scores"], before)


def test_readme_registers_with_verl_even_when_run_twice(monkeypatch):
    """verl's registry refuses another class of the same name."""
    registry = {"naive": NaiveRewardManager}
    module = ModuleType("verl.workers.reward_manager")
    module.get_reward_manager_cls = registry.__getitem__

    def register(name):
        def decorate(cls):
            assert registry.setdefault(name, cls) == cls
            return cls
        return decorate

    module.register = register
    for name in ("verl", "verl.workers", "verl.workers.reward_manager"):
        monkeypatch.setitem(sys.modules, name, module)
    for _ in range(2):
        exec(example("verl_reward"), {})
    assert issubclass(registry["dra"], NaiveRewardManager)


# ------------------------------------------------------------------------------------------------ OpenRLHF


class RemoteExperienceMaker:
    """As in openrlhf 0.11.2, as far as from rewards to advantages under estimator group_norm."""

    def __init__(self, strategy, tokenizer):
        self.args, self.tokenizer = strategy.args, tokenizer

    def compute_advantages_and_returns(self, experiences):
        indices = torch.tensor([index for experience in experiences for index in experience.index])
        raw = torch.cat([experience.rewards for experience in experiences])
        rewards = torch.empty_like(raw)
        rewards[indices] = raw
        rewards = rewards.reshape(-1, self.args.rollout.n_samples_per_prompt)
        rewards = (rewards - rewards.mean(-1, keepdim=True)) / (rewards.std(-1, keepdim=True) + 1e-9)
        for experience, advantages in zip(
                experiences, rewards.reshape(-1)[indices].split([len(experience.index) for experience in experiences])):
            experience.advantages = advantages
        return experiences


def openrlhf_experience(tokenizer, rows: list[int]) -> SimpleNamespace:
    """A micro-batch; action_mask has a column less than the sequences. Rewards come in bf16 from a reward model."""
    prompts = [f"{10 + row // 4}+7" for row in rows]
    answers = [tokenizer.encode(TEXTS[row]) + [0] for row in rows]
    sequences, mask = padded([tokenizer.encode(prompt) + answer for prompt, answer in zip(prompts, answers)],
                             left=False)
    action_mask = torch.zeros_like(mask)
    for i, (prompt, answer) in enumerate(zip(prompts, answers)):
        start = len(tokenizer.encode(prompt))
        action_mask[i, start : start + len(answer)] = 1
    rewards = torch.tensor([REWARDS[row] for row in rows], dtype=torch.bfloat16)
    return SimpleNamespace(sequences=sequences, attention_mask=mask, action_mask=action_mask[:, 1:], index=rows,
                           prompts=prompts, rewards=rewards, info={"reward": rewards})


def test_openrlhf_groups_by_index_wherever_rows_stand():
    """One micro-batch in order, and dynamic batches that hold parts of groups in any order.

    Advantages of group_norm on adjusted rewards.
    """
    tokenizer = AutoTokenizer.from_pretrained("tiny/policy")
    strategy = SimpleNamespace(args=SimpleNamespace(rollout=SimpleNamespace(n_samples_per_prompt=4)))
    maker = openrlhf_reward.with_dra(RemoteExperienceMaker, DRA)(strategy, tokenizer)
    expected = adjusted(TEXTS, REWARDS, [i // 4 for i in range(12)], sharpen=2.0)
    advantages = group_advantages(expected.view(3, 4), eps=1e-9).flatten()
    for batches in ([list(range(12))], [[5, 0, 11], [9], [3, 7, 1, 10, 2, 6], [4, 8]]):
        experiences = maker.compute_advantages_and_returns([openrlhf_experience(tokenizer, rows) for rows in batches])
        for rows, experience in zip(batches, experiences, strict=True):
            torch.testing.assert_close(experience.rewards, expected[rows])
            torch.testing.assert_close(experience.advantages, advantages[rows])
            before = [REWARDS[row] for row in rows]
            assert experience.info["reward"].tolist() == before, "what is logged is the reward before DRA"
    wrong = openrlhf_experience(tokenizer, list(range(12)))
    wrong.prompts[3] = "another"
    with pytest.raises(ValueError, match="n_samples_per_prompt = 4 answer different prompts"):
        maker.compute_advantages_and_returns([wrong])


def test_readme_replaces_openrlhfs_experience_maker():
    names = {"RemoteExperienceMaker": RemoteExperienceMaker}
    exec(example("openrlhf_reward"), names)
    assert names["RemoteExperienceMaker"] is not RemoteExperienceMaker
    assert issubclass(names["RemoteExperienceMaker"], RemoteExperienceMaker)


def test_without_dra_rewards_are_the_plain_total():
    """dra.enabled = false is the baseline, and loads no embedder."""
    reward = DraReward(grpo_config(reward_weights=[2.0]), [lambda **_: REWARDS],
                       DraConfig(enabled=False, embedder="none"))
    values = reward(prompts=["a"] * 6 + ["b"] * 6, completions=TEXTS, log_metric=Trainer().log_metric)
    assert values == [2 * value for value in REWARDS] and not any(map(math.isnan, values))
