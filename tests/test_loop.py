"""The run loop in this process: what it hands to the learner, what it draws when, and that it continues as if never
stopped."""
import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
from test_run import comparable, records

from config import load
from data import DataConfig
from dra_grpo import Config, train
from learner import Learner, lr_at
from model import Transformer
from prompts import decode, load_tokenizer, prompt_tokens
from sampler import Sampler

pytestmark = pytest.mark.exact

# in front, so that the places of the kept problems are not their rows
TOO_LONG = "10+20+30+40+50+60"
PROBLEMS = [TOO_LONG, "47+38", "12+19", "60+55"]
# every option that a tiny recipe leaves at a value under which forgetting it changes nothing
SETTINGS = ["data.prompts_per_step=3", "sampler.group_size=3", "sampler.max_new_tokens=36", "sampler.temperature=0.8",
            "learner.loss=dr_grpo", "learner.lr=3e-4",
            "learner.kl_beta=0.05", "learner.updates_per_rollout=2", "learner.warmup=0.5",
            "learner.mask_truncated=true", "learner.drop_equal_groups=true",
            "eval.benchmarks=[]", "run.steps=4", "run.save_every=2"]


def run(folder: Path, problems: list[str], *overrides: str) -> Config:
    """Trains in `folder` on these sums and returns the settings."""
    data = folder.with_name("train.jsonl")
    data.write_text("".join(json.dumps({"problem": text, "answer": str(sum(map(int, text.split("+"))))}) + "\n"
                            for text in problems))
    config = load(Config, "configs/tiny.toml", [*SETTINGS, f"data.train={data}", f"run.dir={folder}", *overrides])
    handlers = [(s, signal.getsignal(s)) for s in (signal.SIGINT, signal.SIGTERM)]
    try:
        assert train(config) == 0
    finally:
        for s, handler in handlers:
            signal.signal(s, handler)
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(folder, settings, the learner, arguments of its updates, what the sampler gave) of four steps."""
    folder, calls, learners, sampled = tmp_path_factory.mktemp("loop") / "r", [], [], []
    update, generate = Learner.update, Sampler.generate

    def watched_update(self, *arguments):
        learners.append(self)
        calls.append(arguments)
        return update(self, *arguments)

    def watched_generate(self, *arguments):
        sampled.append(generate(self, *arguments))
        return sampled[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "update", watched_update)
        patch.setattr(Sampler, "generate", watched_generate)
        config = run(folder, PROBLEMS)
    return folder, config, learners[0], calls, sampled


def test_the_learner_gets_what_was_sampled_and_scored(finished):
    """Prompt, completion and advantage of each row belong together and to its group in samples.jsonl; Dr.

    GRPO's advantages are not divided.
    """
    folder, config, learner, calls, sampled = finished
    tokenizer, groups = load_tokenizer("tiny/policy"), records(folder / "samples.jsonl")
    assert len(calls) == len(sampled) == 4 and len(groups) == 12
    left_out = {"truncated": 0, "equal": 0}
    for step, (rows, lr) in enumerate(calls):
        expected = []
        for group, completions in zip(groups[3 * step : 3 * step + 3], sampled[step], strict=True):
            figures = group["completions"]
            adjusted, advantages = (torch.tensor([c[key] for c in figures]) for key in ("adjusted", "advantage"))
            torch.testing.assert_close(advantages, adjusted - adjusted.mean())
            assert group["answer"] == str(sum(map(int, group["problem"].split("+"))))
            assert decode(tokenizer, [c.tokens for c in completions], [0]) == [c["text"] for c in figures]
            equal = len({c["reward"] for c in figures}) == 1
            left_out["equal"] += equal and len(set(adjusted.tolist())) > 1
            left_out["truncated"] += sum(c["finish"] == "length" for c in figures)
            prompt = prompt_tokens(tokenizer, group["problem"], DataConfig())
            expected += [(prompt, completion, c["advantage"]) for completion, c in zip(completions, figures)
                         if not equal and c["finish"] == "stop"]
        assert rows == expected and lr == lr_at(step, config.learner, 4)
    assert all(left_out.values()), "both ways to be left out occur, and a group of right answers that DRA tells apart"
    assert learner.max_new_tokens == 36 and learner.updates == 8


def test_the_advantages_hook_gets_what_was_sampled(tmp_path, monkeypatch):
    """Log-probs and lengths of each completion, in the order of the texts; what it returns is what the learner gets."""
    (tmp_path / "hook.py").write_text("def f(logprobs, lengths, **_):\n    return logprobs / lengths\n")
    sampled, rows, generate, update = [], [], Sampler.generate, Learner.update
    monkeypatch.setattr(Sampler, "generate", lambda self, *given: sampled.append(generate(self, *given)) or sampled[-1])
    monkeypatch.setattr(Learner, "update", lambda self, *given: rows.extend(given[0]) or update(self, *given))
    run(tmp_path / "r", PROBLEMS, f"dra.advantages={tmp_path}/hook.py:f", "run.steps=1", "learner.loss=grpo",
        "learner.drop_equal_groups=false", "learner.mask_truncated=false")
    flat = [completion for group in sampled[0] for completion in group]
    assert [row.completion for row in rows] == flat and len(flat) == 9
    assert [row.advantage for row in rows] == pytest.approx([sum(c.logprobs) / len(c.tokens) for c in flat], rel=1e-6)
    groups = records(tmp_path / "r" / "samples.jsonl")
    assert [c["advantage"] for group in groups for c in group["completions"]] == [row.advantage for row in rows]


def test_the_first_prompt_and_the_policys_files_stay_with_the_run(finished):
    """As the policy gets it; and all files but weights byte for byte, where later versions of a library would write
    them in another form."""
    folder, config, *_ = finished
    assert records(folder / "metrics.jsonl")[0]["prompt"] == "<|user|>47+38<|assistant|>"
    for copy in (folder / "final", folder / "checkpoints" / "step-000004" / "policy"):
        for file in Path(config.model.path).iterdir():
            assert file.suffix == ".safetensors" or (copy / file.name).read_bytes() == file.read_bytes(), (
                copy / file.name
            )


def test_prompts_that_are_too_long_are_left_out(finished):
    """Not cut: a prompt without its end asks for something else."""
    assert {group["problem"] for group in records(finished[0] / "samples.jsonl")} == set(PROBLEMS[1:])


def test_sampler_and_learner_agree_in_every_step(finished):
    """The same weights, temperature and vocabulary on both sides: log-probs differ by fp32 rounding, also after updates
    of 3e-4."""
    for record in comparable(finished[0] / "metrics.jsonl"):
        assert 0 <= record["gap"] < 1e-6 and record["gap_max"] < 5e-5, record["step"]


def test_a_run_continues_as_if_never_stopped(finished, tmp_path):
    """From the checkpoint of step 2, with the records of steps 3 and 4 still in the files: bit for bit what it was."""
    folder = tmp_path / "r"
    shutil.copytree(finished[0], folder)
    shutil.rmtree(folder / "checkpoints" / "step-000004")
    shutil.rmtree(folder / "final")
    run(folder, PROBLEMS, f"data.train={finished[1].data.train}")
    for name in ("samples.jsonl", "metrics.jsonl"):
        assert comparable(folder / name) == comparable(finished[0] / name)
    ours, theirs = (Transformer.from_pretrained(path / "final").state_dict() for path in (folder, finished[0]))
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


def test_every_group_has_its_own_draws(tmp_path):
    """One problem four times under weights that stand still (rate 0).

    No two groups of two steps and two seeds are alike.
    """
    for seed in (0, 1):
        run(tmp_path / str(seed), ["47+38"] * 4, "learner.lr=0", "learner.kl_beta=0", "dra.enabled=false",
            "data.prompts_per_step=2", "sampler.group_size=8",
            "sampler.temperature=1", "run.steps=2", f"run.seed={seed}")
    groups = [group for seed in "01" for group in records(tmp_path / seed / "samples.jsonl")]
    assert len({tuple(c["text"] for c in group["completions"]) for group in groups}) == len(groups) == 8


def test_evaluation_does_not_disturb_training(finished, tmp_path):
    """Evaluated after every step, on a prompt that does not fit too.

    Completions and parameters are bit for bit those of the run without.
    """
    (tmp_path / "e.jsonl").write_text(
        "".join(json.dumps({"problem": text, "answer": "85"}) + "\n" for text in ("47+38", "1+" * 200 + "1")))
    run(tmp_path / "r", PROBLEMS, f'eval.benchmarks=["{tmp_path}/e.jsonl"]', "eval.every=1", "eval.samples=3",
        "eval.samples_of={e = 2}", "eval.temperature=0.5")
    evaluations = [record for record in comparable(tmp_path / "r" / "metrics.jsonl") if record["kind"] == "eval"]
    assert [(record["step"], record["samples"], record["too_long"]) for record in evaluations] == [
        (step, 2, 0.5) for step in range(5)]
    assert comparable(tmp_path / "r" / "samples.jsonl") == comparable(finished[0] / "samples.jsonl")
    ours, theirs = (Transformer.from_pretrained(path / "final").state_dict() for path in (tmp_path / "r", finished[0]))
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


def test_a_run_says_that_its_greedy_evaluations_draw_one_sample(tmp_path, capsys):
    (tmp_path / "e.jsonl").write_text('{"problem": "47+38", "answer": "85"}\n')
    run(tmp_path / "r", PROBLEMS, f'eval.benchmarks=["{tmp_path}/e.jsonl"]', "eval.samples=3", "eval.temperature=0",
        "run.steps=1")
    assert "eval.temperature = 0 is greedy: 3 samples of a problem would be equal" in capsys.readouterr().out
    samples = [record["samples"] for record in comparable(tmp_path / "r" / "metrics.jsonl") if record["kind"] == "eval"]
    assert samples == [1, 1]


OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.mark.parametrize(("owner", "name", "error", "words"), [
    (Learner, "update", FloatingPointError("loss nan"),
     "step 1: loss nan; lower learner.lr or look at the last groups in .*r/samples.jsonl"),
    (Learner, "update", OUT_OF_MEMORY,
     "step 1: out of GPU memory; lower learner.micro_batch_tokens, sampler.slots or sampler.max_new_tokens, .*"
     "activation_checkpointing = true or learner.offload = true; --dry-run prints"),
    (Sampler, "generate", OUT_OF_MEMORY, "step 1: out of GPU memory; lower learner.micro_batch_tokens"),
    (Learner, "update", RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
     "step 1: out of memory; lower")])
def test_a_step_that_fails_leaves_its_samples(tmp_path, monkeypatch, capsys, owner, name, error, words):
    """What an update was given is in the file before it, and the message says what helps; what was not made is not."""
    def fail(*arguments):
        raise error

    monkeypatch.setattr(owner, name, fail)
    with pytest.raises(ValueError, match=words):
        run(tmp_path / "r", PROBLEMS)
    assert [group["step"] for group in records(tmp_path / "r" / "samples.jsonl")] == [1, 1, 1] * (owner is Learner)
    assert [record["kind"] for record in records(tmp_path / "r" / "metrics.jsonl")] == ["run"]
    assert "Traceback" not in capsys.readouterr().err


def test_out_of_memory_in_an_evaluation_names_its_own_settings(tmp_path, monkeypatch):
    def fail(*arguments):
        raise OUT_OF_MEMORY

    monkeypatch.setattr(Sampler, "generate", fail)
    with pytest.raises(ValueError, match="evaluation after step 0: out of GPU memory; lower eval.slots .*max_new_"):
        run(tmp_path / "r", PROBLEMS, 'eval.benchmarks=["tiny/test.jsonl"]')
