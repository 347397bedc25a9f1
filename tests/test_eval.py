"""eval.py: estimators against counting, and the command on the tiny policy."""
import itertools
import json
import math
import subprocess
import sys

import pytest

from data import DataConfig, load_tokenizer, prompt_tokens
from eval import effective_labels, evaluate, main, pass_at_k, standard_error, summarize
from model import Transformer
from ranks import run_main
from reward import Grader
from samples import EvalConfig, eval_sampler


def test_pass_at_k_equals_counting_subsets():
    """Brute force over all k-subsets of n samples."""
    for n in range(1, 8):
        for c in range(n + 1):
            for k in range(1, n + 1):
                subsets = list(itertools.combinations(range(n), k))
                assert pass_at_k(n, c, k) == pytest.approx(sum(min(s) < c for s in subsets) / len(subsets), abs=1e-12)
    assert pass_at_k(1000, 1, 1000) == 1.0 and pass_at_k(1000, 0, 5) == 0.0
    for n, c, k in ((4, 5, 1), (4, 2, 0), (4, 2, 5)):
        with pytest.raises(ValueError, match="pass@k"):
            pass_at_k(n, c, k)


def test_effective_labels_by_hand():
    assert effective_labels(["a"] * 5) == 1.0
    assert effective_labels(["a", "b", "c", "d"]) == pytest.approx(4)
    assert effective_labels(["a", "a", "b"]) == pytest.approx(math.exp(-(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3))))
    with pytest.raises(ValueError):
        effective_labels([])


def test_standard_error_by_hand():
    assert standard_error([0.0, 1.0]) == pytest.approx(0.5)
    assert standard_error([0.3]) == 0.0


def make_samples(correct, labels):
    """One problem per row: whether each sample is right, and its label."""
    return [{"problem": p, "sample": i, "correct": c, "reason": "equal" if c else "no box", "finish": "stop", "length": 4, "label": label, "gold": "7",
             "answer": "7" if c else None, "vote": "7" if c else None}
            for p, (row, names) in enumerate(zip(correct, labels)) for i, (c, label) in enumerate(zip(row, names))]


def test_summarize_counts_right_answers_only_and_from_sixteen():
    """Problem 0: 16 right with two labels, later ones must not count; problem 1 has 15 right ones and is left out but pooled."""
    correct = [[True] * 32, [True] * 15 + [False] * 17]
    labels = [["a", "b"] * 8 + ["c"] * 16, ["a"] * 15 + ["d"] * 17]
    record = summarize("x", make_samples(correct, labels))
    assert record["accuracy"] == 47 / 64 and record["n"] == 2 and record["samples"] == 32
    assert record["accuracy_se"] == pytest.approx(standard_error([1, 15 / 32]))
    assert record["pass_at_k"]["1"] == pytest.approx(47 / 64) and list(record["pass_at_k"]) == ["1", "2", "4", "8", "16", "32"]
    assert record["effective_strategies"] == pytest.approx(2.0) and record["effective_strategies_problems"] == 1
    assert record["strategies"] == {"a": 23, "c": 16, "b": 8}
    assert record["no_answer"] == 17 / 64
    shuffled = sorted(make_samples(correct, labels), key=lambda s: (s["sample"] * 7 + s["problem"] * 3) % 11)
    assert summarize("x", shuffled) == record
    thirds = make_samples([[True, False, p % 3 == 0] for p in range(50)], [["a", "b", "c"]] * 50)
    assert summarize("x", thirds[::-1]) == summarize("x", thirds), "ranks hand in their problems in turn: not even rounding may depend on the order"


def test_evaluation_does_not_depend_on_its_parts(tmp_path, monkeypatch):
    """Five problems in one call of the sampler or in calls of two: the same samples. Rows with the same text are different problems."""
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps({"problem": f"{a}+38", "answer": str(a + 38)}) + "\n" for a in (47, 12, 47, 60, 31)))
    model, tokenizer, config = Transformer.from_pretrained("tiny/policy"), load_tokenizer("tiny/policy"), EvalConfig(samples=3, max_new_tokens=32, temperature=1.0)
    with Grader(1) as grader:
        record, samples = evaluate(model, tokenizer, str(path), DataConfig(), config, grader)
        monkeypatch.setattr("samples.ROWS_PER_CALL", 6)
        assert evaluate(model, tokenizer, str(path), DataConfig(), config, grader) == (record, samples)
    assert record["n"] == 5 and record["samples"] == 3 and len(samples) == 15
    texts = [[sample["text"] for sample in samples if sample["problem"] == place] for place in range(5)]
    assert texts[0] != texts[2] and [len(row) for row in texts] == [3] * 5


def test_evaluation_samples_as_it_is_told():
    """A nucleus of one token is greedy decoding, and both sources of stop ids count."""
    model, tokenizer = Transformer.from_pretrained("tiny/policy"), load_tokenizer("tiny/policy")
    model.n_tokens, model.generation_config = len(tokenizer), {"eos_token_id": [0, 5]}
    greedy, narrow, wide = (eval_sampler(model, tokenizer, EvalConfig(max_new_tokens=32, temperature=temperature, top_p=top_p))
                            for temperature, top_p in ((0.0, 1.0), (1.0, 1e-6), (1.0, 1.0)))
    assert narrow.is_stop.nonzero().flatten().tolist() == [0, 5]
    prompts = [prompt_tokens(tokenizer, f"{a}+38", DataConfig()) for a in (47, 12, 60)]
    tokens = [[c.tokens for group in sampler.generate(prompts, 2, (0,)) for c in group] for sampler in (greedy, narrow, wide)]
    assert tokens[0] == tokens[1] != tokens[2]


def run_eval(*arguments):
    return subprocess.run([sys.executable, "eval.py", "--config", "configs/eval_tiny.toml", *arguments], capture_output=True, text=True)


@pytest.mark.smoke
def test_eval_command_keeps_every_sample(tmp_path):
    """The README's command on 10 problems: figures printed, all samples on disk, and the figures are those of the samples."""
    with open("tiny/test.jsonl") as file:
        (tmp_path / "few.jsonl").write_text("".join(itertools.islice(file, 10)))
    result = run_eval("--model", "tiny/policy", f'eval.benchmarks=["{tmp_path}/few.jsonl"]', f"output.dir={tmp_path}/out")
    assert result.returncode == 0, result.stderr
    assert "avg@32, 10 problems" in result.stdout and "effective strategies" in result.stdout
    samples = [json.loads(line) for line in (tmp_path / "out" / "tiny-policy" / "few.samples.jsonl").read_text().splitlines()]
    record = json.loads((tmp_path / "out" / "tiny-policy" / "results.jsonl").read_text())
    assert len(samples) == 320 and record["accuracy"] == sum(s["correct"] for s in samples) / 320
    again = summarize("few", samples)
    assert all(record[key] == value for key, value in again.items())


@pytest.mark.smoke
def test_eval_errors_are_one_line(tmp_path, monkeypatch, capsys):
    for arguments, word in ((["--model", str(tmp_path / "none")], "model.path"), (["eval.benchmarks=[]"], "eval.benchmarks"), (["eval.top_p=1.5"], "eval.top_p")):
        monkeypatch.setattr(sys, "argv", ["eval.py", "--config", "configs/eval_tiny.toml", *arguments])
        with pytest.raises(SystemExit) as exit_:
            run_main(main)
        error = capsys.readouterr().err
        assert exit_.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1 and word in error
