"""eval.py: figures by hand, and the command on the tiny policy."""
import hashlib
import itertools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from test_learner import torchrun

import eval as eval_module
from config import load
from data import DataConfig
from eval import PROTOCOLS, Config, average, evaluate, main, right_similarity, summarize
from eval_samples import (EvalConfig, assign_votes, collect, eval_sampler, greedy_remark, labeller, sample_groups,
                          whole_problems)
from files import json_lines
from grader import Grader
from metrics import standard_error
from model import Transformer
from prompts import load_tokenizer, prompt_tokens
from ranks import run_main
from report.read import read_evaluation


def make_samples(correct, labels):
    """One problem per row: whether each sample is right, and its label."""
    return [{"problem": p, "sample": i, "correct": c, "reason": "equal" if c else "no box", "finish": "stop",
             "length": 4, "label": label, "gold": "7", "answer": "7" if c else None, "vote": "7" if c else None}
            for p, (row, names) in enumerate(zip(correct, labels)) for i, (c, label) in enumerate(zip(row, names))]


def test_summarize_counts_right_answers_only_and_from_sixteen():
    """Problem 0: 16 right with two labels, later ones must not count.

    Problem 1 has 15 right ones and is left out but pooled.
    """
    correct = [[True] * 32, [True] * 15 + [False] * 17]
    labels = [["a", "b"] * 8 + ["c"] * 16, ["a"] * 15 + ["d"] * 17]
    record = summarize("x", make_samples(correct, labels))
    assert record["accuracy"] == 47 / 64 and record["n"] == 2 and record["samples"] == 32
    assert record["accuracy_se"] == pytest.approx(standard_error([1, 15 / 32]))
    assert record["pass_at_k"]["1"] == pytest.approx(47 / 64)
    assert list(record["pass_at_k"]) == ["1", "2", "4", "8", "16", "32"]
    assert record["effective_strategies"] == pytest.approx(2.0) and record["effective_strategies_problems"] == 1
    assert record["strategies"] == {"a": 23, "c": 16, "b": 8}
    assert record["distinct_strategies"] == 2, "three of all right answers to problem 0, one of problem 1"
    assert record["no_answer"] == 17 / 64
    shuffled = sorted(make_samples(correct, labels), key=lambda s: (s["sample"] * 7 + s["problem"] * 3) % 11)
    assert summarize("x", shuffled) == record
    thirds = make_samples([[True, False, p % 3 == 0] for p in range(50)], [["a", "b", "c"]] * 50)
    again = summarize("x", thirds[::-1])
    assert again == summarize("x", thirds), "ranks' problems come in turn: not even rounding may depend on the order"


def graded(*answers, gold="7"):
    """A problem's samples with these answers, each (answer, reason) or an answer graded "different"."""
    pairs = [answer if isinstance(answer, tuple) else (answer, "different") for answer in answers]
    return [{"gold": gold, "answer": answer, "correct": reason == "equal", "reason": reason}
            for answer, reason in pairs]


def test_wrong_answers_that_are_equal_vote_together():
    """As text, as fractions, by algebra with the first of them.

    Without algebra where the grader ran out of time before; never across problems.
    """
    groups = [graded("1/2", "0.5", " \\frac12", ("7.0", "equal"), (None, "no box"), ("x", "timeout"), "2"),
              graded("x+1", "\\sqrt{8}", "1+x", "2\\sqrt2", "1/2", "x + 1", ("x+1+0", "timeout")), graded(),
              graded((None, "no box"))]
    with Grader(1) as grader:
        assign_votes(groups, grader)
    assert [[sample["vote"] for sample in group] for group in groups] == [
        ["1/2", "1/2", "1/2", "7", None, "x", "2"], ["x+1", "\\sqrt{8}", "x+1", "\\sqrt{8}", "1/2", "x+1", "x+1+0"], [],
        [None]]


def test_an_empty_box_has_no_vote():
    """Nor has one with nothing but spacing in it: two of them would outvote a right answer."""
    group = graded("", " \\, ", "{}", ("7.0", "equal"), (None, "no box"))
    with Grader(1) as grader:
        assign_votes([group], grader)
    assert [sample["vote"] for sample in group] == [None, None, None, "7", None]


def test_right_answers_vote_together_whichever_gold_they_equal():
    group = [{**sample, "gold": ["1/2", "0.5"], "correct": i < 2} for i, sample in enumerate(graded("1/2", "0.5", "3"))]
    with Grader(1) as grader:
        assign_votes([group], grader)
    assert [sample["vote"] for sample in group] == ["1/2", "1/2", "3"]


def test_summarize_by_hand():
    """Two problems, three seeds: 2 + 1 right; one sample cut, one late, one without an answer, one prompt that does not
    fit."""
    samples = make_samples([[True, True, False], [True, False, False]], [["a", "a", "b"]] * 2)
    for i, change in ((1, {"length": 10}), (2, {"vote": "8", "answer": "8", "reason": "timeout", "length": 6}),
                      (4, {"finish": "length", "vote": "9", "answer": "9", "reason": "different"}),
                      (5, {"finish": "prompt", "reason": "prompt too long", "length": 0})):
        samples[i] |= change
    record = summarize("x", samples)
    assert record["accuracy_sd"] == pytest.approx(0.5), "the seeds score 1, 1/2 and 0"
    assert record["accuracy_se"] == pytest.approx(math.sqrt(2 * (1 / 6) ** 2 / 2))
    assert record["maj_at_k"] == pytest.approx({"1": 0.5, "2": (2 / 3 + (1 / 2 + 1 + 0) / 3) / 2, "3": (1 + 1 / 2) / 2})
    assert list(record["pass_at_k"]) == ["1", "2", "3"]
    assert record["truncated"] == record["timeouts"] == record["no_answer"] == record["too_long"] == 1 / 6
    assert record["length"] == pytest.approx(32 / 6 - 2 / 3) and record["length_right"] == 6
    assert record["length_max"] == 10 and record["distinct_answers"] == 2
    assert record["reasons"] == {"equal": 3, "timeout": 1, "different": 1, "prompt too long": 1}
    assert summarize("x", make_samples([[True]], [["a"]]))["accuracy_sd"] is None


def test_average_weighs_benchmarks_alike():
    """Two benchmarks of 2 and 50 problems with n = 4 and 2: errors add in squares, and k goes as far as both do."""
    a, b = summarize("a", make_samples([[True] * 4, [False, True] * 2], [["x"] * 4] * 2)), summarize(
        "b", make_samples([[p % 5 == 0, False] for p in range(50)], [["x"] * 2] * 50))
    record = average([a, b])
    assert record["accuracy"] == pytest.approx((0.75 + 0.1) / 2) and record["n"] == 52
    assert record["benchmarks"] == ["a", "b"]
    assert record["accuracy_se"] == pytest.approx(math.sqrt(a["accuracy_se"] ** 2 + b["accuracy_se"] ** 2) / 2)
    assert record["accuracy_sd"] == pytest.approx(math.sqrt(a["accuracy_sd"] ** 2 + b["accuracy_sd"] ** 2) / 2)
    assert list(record["pass_at_k"]) == ["1", "2"]
    assert record["pass_at_k"]["2"] == pytest.approx((a["pass_at_k"]["2"] + b["pass_at_k"]["2"]) / 2)
    assert average([a | {"vendi": None}, b | {"vendi": 3.0}])["vendi"] == 3.0


def test_similarity_is_that_of_right_answers():
    """Three right answers with cosines 0, 0 and 1, and a wrong one that is like none.

    The Vendi score waits for a fourth.
    """
    class Axes:
        def encode(self, texts):
            return torch.tensor([[text == "a", text == "b", text == "wrong"] for text in texts], dtype=torch.float32)

        def cut(self, texts):
            return [text == "b" for text in texts]
    group = [{"problem": 3, "text": text, "correct": text != "wrong"} for text in ("a", "wrong", "b", "a")]
    assert right_similarity(group, Axes()) == (3, pytest.approx(1 / 3), None, 1)
    assert right_similarity([*group, group[2], group[3]], Axes())[2] == pytest.approx(2), "of the first four, a b a b"
    assert right_similarity(group[:2], Axes()) == (3, None, None, 0)


def test_a_cut_samples_file_gives_back_its_whole_problems(tmp_path):
    """Files of three ranks, the first cut in or between its last lines.

    The problems come out in order, once each, and collecting again changes nothing.
    """
    groups = {p: [{"problem": p, "sample": i, "text": "\u2028é\n" * p} for i in range(2)] for p in range(6)}
    whole = json_lines(sample for p in (4, 1) for sample in groups[p])
    last = json_lines(groups[5])
    for size in (0, 1, 30, len(last) // 2, len(last) // 2 + 1, len(last) - 1, len(last)):
        parts = tmp_path / f"{size}"
        parts.mkdir()
        (parts / "rank0.jsonl").write_bytes(whole + last[:size])
        (parts / "rank1.jsonl").write_bytes(json_lines(groups[0]))
        (parts / "kept.jsonl").write_bytes(json_lines(groups[1]))
        expected = [0, 1, 4] + [5] * (size == len(last))
        for _ in range(2):
            assert collect(parts, parts / "kept.jsonl", 2) == expected
            assert [path.name for path in parts.iterdir()] == ["kept.jsonl"]
            assert (parts / "kept.jsonl").read_bytes() == json_lines(sample for p in expected for sample in groups[p])
        assert [samples[0]["problem"] for samples, _ in whole_problems(parts / "kept.jsonl", 2)] == expected


def test_evaluation_does_not_depend_on_its_parts(tmp_path, monkeypatch):
    """Five problems in one call of the sampler or in calls of two: the same samples.

    Rows with the same text are different problems.
    """
    path = tmp_path / "d.jsonl"
    path.write_text(
        "".join(json.dumps({"problem": f"{a}+38", "answer": str(a + 38)}) + "\n" for a in (47, 12, 47, 60, 31)))
    model, tokenizer, config = Transformer.from_pretrained("tiny/policy"), load_tokenizer("tiny/policy"), EvalConfig(
        samples=3, max_new_tokens=32, temperature=1.0)
    with Grader(1) as grader:
        record, samples = evaluate(model, tokenizer, str(path), DataConfig(), config, grader)
        monkeypatch.setattr("eval_samples.ROWS_PER_CALL", 6)
        assert evaluate(model, tokenizer, str(path), DataConfig(), config, grader) == (record, samples)
    assert record["n"] == 5 and record["samples"] == 3 and len(samples) == 15
    texts = [[sample["text"] for sample in samples if sample["problem"] == place] for place in range(5)]
    assert texts[0] != texts[2] and [len(row) for row in texts] == [3] * 5


def test_evaluation_samples_as_it_is_told():
    """A nucleus of one token is greedy decoding, and both sources of stop ids count."""
    model, tokenizer = Transformer.from_pretrained("tiny/policy"), load_tokenizer("tiny/policy")
    model.n_tokens, model.generation_config = len(tokenizer), {"eos_token_id": [0, 5]}
    greedy, narrow, wide = (
        eval_sampler(
            model, tokenizer, EvalConfig(max_new_tokens=32, temperature=temperature, top_p=top_p), DataConfig()
        )
        for temperature, top_p in ((0.0, 1.0), (1.0, 1e-6), (1.0, 1.0))
    )
    assert narrow.is_stop.nonzero().flatten().tolist() == [0, 5]
    prompts = [prompt_tokens(tokenizer, f"{a}+38", DataConfig()) for a in (47, 12, 60)]
    tokens = [[c.tokens for group in sampler.generate(prompts, 2, (0,)) for c in group]
              for sampler in (greedy, narrow, wide)]
    assert tokens[0] == tokens[1] != tokens[2]


def test_a_prompt_that_does_not_fit_counts_as_wrong(tmp_path):
    """It is not sampled, its neighbours are as without it, and it says so.

    A limit that leaves no room for any prompt is refused.
    """
    model, tokenizer, config = Transformer.from_pretrained("tiny/policy"), load_tokenizer("tiny/policy"), EvalConfig(
        samples=2, max_new_tokens=32, temperature=1.0)
    rows = [{"problem": "47+38", "answer": "85"}, {"problem": "1+" * 200 + "1", "answer": "201"},
            {"problem": "12+60", "answer": "72"}]
    records = {}
    with Grader(1) as grader:
        for name, kept in (("all", rows), ("short", [rows[0], {**rows[1], "problem": "1+1"}, rows[2]])):
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
            records[name] = evaluate(model, tokenizer, str(tmp_path / f"{name}.jsonl"), DataConfig(), config, grader)
        with pytest.raises(ValueError, match="eval.max_new_tokens = 256.*context of 256"):
            eval_sampler(model, tokenizer, EvalConfig(max_new_tokens=256), DataConfig())
    record, samples = records["all"]
    assert record["n"] == 3 and record["too_long"] == 1 / 3 and record["reasons"]["prompt too long"] == 2
    assert [s for s in samples if s["problem"] != 1] == [s for s in records["short"][1] if s["problem"] != 1]


def test_each_benchmark_has_its_own_n_and_prompt(tmp_path):
    (tmp_path / "d.jsonl").write_text('{"problem": "47+38", "answer": "85"}\n')
    model, tokenizer = Transformer.from_pretrained("tiny/policy"), load_tokenizer("tiny/policy")
    config = EvalConfig(samples=2, samples_of={"d": 3}, max_new_tokens=8, prompt="{problem}+1")
    asked = []
    hidden = model.hidden
    model.hidden = lambda tokens, *rest, **options: asked.append(tokens) or hidden(tokens, *rest, **options)
    with Grader(1) as grader:
        record, _ = evaluate(model, tokenizer, str(tmp_path / "d.jsonl"), DataConfig(template="no {problem}"), config,
                             grader)
    assert record["samples"] == 3 and asked[0][0].tolist() == prompt_tokens(tokenizer, "47+38+1", DataConfig())


ROOT = Path(__file__).resolve().parents[1]
# 12 rows, four problems, between two writes
SMALL = ["eval.samples=3", "eval.slots=3", "model.path=tiny/policy", "diversity.embedder=tiny/embedder"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(overrides, output folder) of an uninterrupted evaluation of two benchmarks in this process."""
    folder = tmp_path_factory.mktemp("eval")
    lines = Path("tiny/test.jsonl").read_text().splitlines(keepends=True)
    (folder / "a.jsonl").write_text("".join(lines[:14]))
    (folder / "b.jsonl").write_text("".join(lines[20:26]))
    overrides = [*SMALL, f'eval.benchmarks=["{folder}/a.jsonl", "{folder}/b.jsonl"]', "eval.samples_of={b = 5}"]
    assert in_process(overrides, folder / "out") == 0
    return overrides, folder / "out" / "tiny-policy"


def in_process(overrides, out):
    handlers = [(s, signal.getsignal(s)) for s in (signal.SIGINT, signal.SIGTERM)]
    try:
        return main(["--config", "configs/eval_tiny.toml", *overrides, f"output.dir={out}"])
    finally:
        for s, handler in handlers:
            signal.signal(s, handler)


def contents(folder):
    """Everything an evaluation leaves but its settings, which name the folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in ("config.toml", "lock")}


def test_an_evaluation_continues_where_it_was_interrupted(finished, tmp_path, monkeypatch, capsys):
    """By an error in the first benchmark and Ctrl-C in the second, with half a line written: bit-equal in the end, and
    no problem is sampled twice."""
    overrides, whole = finished
    assert set(contents(whole)) == {"identity.json", "results.jsonl", "a.samples.jsonl", "b.samples.jsonl"}
    sampled, generate = [], eval_sampler.__globals__["Sampler"].generate

    class Killed(Exception):
        pass

    def stops(self, prompts, *arguments):
        if len(sampled) in (2, 6):                      # in the first benchmark and in the second
            sampled.append(0)
            if len(sampled) > 3:
                signal.raise_signal(signal.SIGINT)
            raise Killed
        sampled.append(len(prompts))
        return generate(self, prompts, *arguments)
    monkeypatch.setattr(eval_sampler.__globals__["Sampler"], "generate", stops)
    for code in (None, 128 + signal.SIGINT):
        if code:
            assert in_process(overrides, tmp_path) == code and "the same command continues" in capsys.readouterr().err
        else:
            with pytest.raises(ValueError, match="tiny/policy, a"):
                in_process(overrides, tmp_path)
            assert "a: continuing" not in capsys.readouterr().out
        for path in (tmp_path / "tiny-policy").glob("*.parts/rank0.jsonl"):
            with open(path, "ab") as file:
                file.write(b'{"problem": 13, "sample": 0, "te')
    continued = tmp_path / "tiny-policy"
    assert in_process(overrides, tmp_path) == 0 and contents(continued) == contents(whole)
    assert sum(sampled) == 14 + 6 and "b: continuing with 4 of 6 problems" in capsys.readouterr().out
    before = len(sampled)
    assert in_process(overrides, tmp_path) == 0
    assert len(sampled) == before, "a finished evaluation is read, not made again"
    assert contents(continued) == contents(whole) and "average: accuracy" in capsys.readouterr().out


def test_out_of_memory_names_the_settings_that_help(finished, tmp_path, monkeypatch, capsys):
    def fail(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(eval_sampler.__globals__["Sampler"], "generate", fail)
    with pytest.raises(ValueError, match=r"tiny/policy, a: out of GPU memory; lower eval.slots .*eval.max_new_tok"):
        in_process(finished[0], tmp_path)
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.slow
def test_two_ranks_evaluate_alike(finished, tmp_path):
    """Each samples its share and embeds its share: the same bytes as one rank."""
    result = torchrun(2, "eval.py", "--config", "configs/eval_tiny.toml", *finished[0], f"output.dir={tmp_path}")
    assert result.returncode == 0, result.stderr[-3000:]
    assert contents(tmp_path / "tiny-policy") == contents(finished[1])
    assert result.stdout.count("average: accuracy") == 1


@pytest.mark.slow
def test_two_ranks_draw_what_one_has_not(finished, tmp_path):
    """Each of two ranks adds to its share of the samples that one rank has made of the first benchmark."""
    fewer = [*finished[0], f'eval.benchmarks=["{finished[1].parents[1]}/a.jsonl"]', "eval.samples_of={a = 1}"]
    assert in_process(fewer, tmp_path) == 0
    result = torchrun(2, "eval.py", "--config", "configs/eval_tiny.toml", *finished[0], f"output.dir={tmp_path}")
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count("a: drawing 2 samples per problem in addition to 1") == 1
    assert contents(tmp_path / "tiny-policy") == contents(finished[1])


@pytest.mark.slow
def test_a_killed_evaluation_continues(finished, tmp_path):
    """kill -9 as soon as the first samples are on disk."""
    command = [sys.executable, "eval.py", "--config", "configs/eval_tiny.toml", *finished[0], f"output.dir={tmp_path}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                               env={**os.environ, "OMP_NUM_THREADS": "1"})
    while process.poll() is None and not any(path.stat().st_size for path in tmp_path.glob("*/*.parts/rank0.jsonl")):
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL and not (tmp_path / "tiny-policy" / "b.samples.jsonl").exists()
    assert in_process(finished[0], tmp_path) == 0
    assert contents(tmp_path / "tiny-policy") == contents(finished[1])


def test_figures_follow_from_the_samples(finished):
    """The record of each benchmark is that of its kept samples, the last is the average, and every sample has what
    docs/evaluation.md says."""
    records = [json.loads(line) for line in (finished[1] / "results.jsonl").read_text().splitlines()]
    assert [record["benchmark"] for record in records] == ["a", "b", "average"]
    for record, n in zip(records, (3, 5)):
        samples = [json.loads(line)
                   for line in (finished[1] / f"{record['benchmark']}.samples.jsonl").read_text().splitlines()]
        assert all(record[key] == value for key, value in summarize(record["benchmark"], samples).items())
        assert record["samples"] == n
        assert set(samples[0]) == {"problem", "id", "sample", "seed", "gold", "text", "answer", "correct", "reason",
                                   "length", "finish", "vote", "label"}
        assert 0 < record["similarity"] < 1 and record["embed_cut"] == 0 and record["settings"]["samples"] == n
        assert [(s["problem"], s["sample"]) for s in samples] == [(p, i) for p in range(record["n"]) for i in range(n)]
    assert records[2] == {"model": "tiny/policy", **average(records[:2])}


def test_another_evaluation_in_the_same_folder_is_refused(finished, tmp_path):
    """Other settings, other weights or other problems under the same paths.

    Nothing is changed, and what differs is said.
    """
    folder, before = finished[1].parent, contents(finished[1])
    with pytest.raises(ValueError, match=r"other settings \(eval.seed: 0 -> 1\); name another output.dir"):
        in_process([*finished[0], "eval.seed=1", "eval.slots=7"], folder)
    kept = (finished[1] / "identity.json").read_text()
    weights = Path("tiny/policy/model.safetensors").read_bytes()
    assert json.loads(kept)["model.safetensors"] == hashlib.sha256(weights).hexdigest()
    source = folder.parent / "a.jsonl"
    text = source.read_text()
    source.write_text(text.replace("85", "86", 1))
    with pytest.raises(ValueError, match=r"other weights, problems or functions \(a is another"):
        in_process(finished[0], folder)
    source.write_text(text)
    assert contents(finished[1]) == before


def test_a_finished_evaluation_grows_to_a_fresh_one(finished, tmp_path, monkeypatch, capsys):
    """More samples, and another benchmark in front of the first: only what is missing is drawn, an interruption in the
    middle loses nothing, and the files are those of one evaluation with the larger settings."""
    fewer = [*finished[0][:-2], f'eval.benchmarks=["{finished[1].parents[1]}/b.jsonl"]']
    assert in_process([*fewer, "eval.samples=2"], tmp_path) == 0
    out, drawn, left = tmp_path / "tiny-policy", [], [5]        # calls for a and the first for b
    generate = eval_sampler.__globals__["Sampler"].generate

    def counts(self, prompts, n, seed, positions, first):
        if len(drawn) in left:
            left.clear()
            signal.raise_signal(signal.SIGINT)
        drawn.append((len(prompts), n, first))
        return generate(self, prompts, n, seed, positions, first)

    monkeypatch.setattr(eval_sampler.__globals__["Sampler"], "generate", counts)
    assert in_process(finished[0], tmp_path) == 130
    records = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [(record["benchmark"], record["samples"]) for record in records] == [("a", 3), ("b", 2)], "b as it was"
    assert read_evaluation(out).results["b"]["settings"]["samples"] == 2
    with pytest.raises(ValueError, match="evaluation of b that was interrupted: finish it with its 5 samples"):
        in_process([*finished[0], "eval.samples_of={b = 6}"], tmp_path)
    assert in_process(finished[0], tmp_path) == 0 and contents(out) == contents(finished[1])
    assert drawn == [(4, 3, 0)] * 3 + [(2, 3, 0)] + [(2, 3, 2)] * 3, "twelve rows at a time; b has two samples"
    assert "b: drawing 3 samples per problem in addition to 2" in capsys.readouterr().out
    for lower, words in ((["eval.samples_of={b = 4}"], "5 samples per problem of b, and now it is to have 4"),
                         ([fewer[-1]], "3 samples per problem of a, and now it is to have none: it can only grow; "
                                       "change eval.benchmarks, eval.samples or eval.samples_of back")):
        with pytest.raises(ValueError, match=words):
            in_process([*finished[0], *lower], tmp_path)
    assert contents(out) == contents(finished[1])


def test_a_benchmark_that_is_added_leaves_the_others(finished, tmp_path, capsys):
    """Its figures come first, and the record of the other is that of an evaluation of both from the start."""
    one = [*finished[0], f'eval.benchmarks=["{finished[1].parents[1]}/b.jsonl"]']
    assert in_process(one, tmp_path) == 0
    samples = tmp_path / "tiny-policy" / "b.samples.jsonl"
    written = samples.stat().st_mtime_ns
    assert in_process(finished[0], tmp_path) == 0 and contents(tmp_path / "tiny-policy") == contents(finished[1])
    assert samples.stat().st_mtime_ns == written and "in addition" not in capsys.readouterr().out


def test_added_samples_vote_with_those_before(monkeypatch):
    """0.5 among the new ones is the 1/2 of before."""
    model, tokenizer = Transformer.from_pretrained("tiny/policy"), load_tokenizer("tiny/policy")
    config, row = EvalConfig(samples=2, max_new_tokens=4), {"id": 0, "problem": "47+38", "answer": "85"}
    monkeypatch.setattr("eval_samples.decode", lambda tokenizer, tokens, stops: ["so \\boxed{0.5}"] * len(tokens))
    old = {"problem": 0, "sample": 0, "gold": "85", "answer": "1/2", "correct": False, "reason": "different",
           "vote": "1/2"}
    with Grader(1) as grader:
        (group,), = sample_groups(eval_sampler(model, tokenizer, config), tokenizer, [row], DataConfig(), config,
                                  grader, kept=[[old]])
    assert [(s["sample"], s["answer"], s["vote"]) for s in group] == [(0, "1/2", "1/2"), (1, "0.5", "1/2")]


def test_a_damaged_evaluation_does_not_grow(finished, tmp_path):
    shutil.copytree(finished[1].parent, tmp_path, dirs_exist_ok=True)
    final = tmp_path / "tiny-policy" / "a.samples.jsonl"
    final.write_bytes(b"".join(final.read_bytes().splitlines(keepends=True)[:4]))
    with pytest.raises(ValueError, match="a.samples.jsonl has whole samples of 1 of 14 problems; remove it"):
        in_process([*finished[0], "eval.samples=4"], tmp_path)


def test_samples_of_unknown_origin_are_not_continued(finished, tmp_path):
    """Regraded ones, for instance, whose golds may be others than those of the benchmark."""
    shutil.copytree(finished[1].parent, tmp_path, dirs_exist_ok=True)
    (tmp_path / "tiny-policy" / "identity.json").unlink()
    with pytest.raises(ValueError, match="has no identity.json, so its samples come from report regrade or"):
        in_process(finished[0], tmp_path)


def test_an_evaluation_shows_the_accuracy_so_far(finished, tmp_path, monkeypatch):
    """Of all problems that are done, after each call of the sampler: four of `a` with three samples, two of `b`."""
    shown = []
    monkeypatch.setattr("eval_samples.tqdm.set_postfix_str", lambda bar, text, refresh: shown.append(text))
    assert in_process(finished[0], tmp_path) == 0
    right = {name: [json.loads(line)["correct"] for line in (finished[1] / f"{name}.samples.jsonl").open()]
             for name in "ab"}
    assert shown == [f"accuracy {sum(right[name][:done]) / done:.3f}"
                     for name, ends in (("a", (12, 24, 36, 42)), ("b", (10, 20, 30))) for done in ends]


def test_greedy_samples_are_drawn_and_counted_once(finished, tmp_path, capsys):
    """Copies of one sample would pass for seeds that agree: sd 0, pass@k and maj@k no larger than the accuracy."""
    assert in_process([*finished[0], "eval.temperature=0"], tmp_path) == 0
    assert capsys.readouterr().out.count("greedy: 5 samples of a problem would be equal, so one is drawn") == 1
    folder = tmp_path / "tiny-policy"
    record = json.loads((folder / "results.jsonl").read_text().splitlines()[0])
    assert record["samples"] == record["settings"]["samples"] == 1 and record["accuracy_sd"] is None
    assert list(record["pass_at_k"]) == list(record["maj_at_k"]) == ["1"]
    assert len((folder / "a.samples.jsonl").read_text().splitlines()) == 14
    sampled = load(Config, "configs/eval_tiny.toml", ["eval.temperature=0", "eval.samples=1"])
    assert greedy_remark(sampled.eval) == greedy_remark(load(Config, "configs/eval_tiny.toml").eval) == ""


def test_what_changes_no_figure_may_change(finished, tmp_path):
    """Fewer slots, another number of workers, another name of the folder.

    What a user needs who has run out of memory or has moved things.
    """
    shutil.copytree(finished[1].parent, tmp_path / "moved")
    assert in_process([*finished[0], "eval.slots=2", "output.workers=1",
                       "model.path=tiny/policy/"], tmp_path / "moved") == 0
    assert contents(tmp_path / "moved" / "tiny-policy") == contents(finished[1])


def test_a_start_that_failed_is_no_obstacle(tmp_path):
    """Nothing was sampled, so settings and problems may still change."""
    (tmp_path / "d.jsonl").write_text('{"problem": "47+38", "answer": "85"}\n')
    (tmp_path / "label.py").write_text("def label(text, row):\n    return 7\n")
    one = [f'eval.benchmarks=["{tmp_path}/d.jsonl"]', "eval.samples=2", "model.path=tiny/policy"]
    for wrong, words in (("eval.max_new_tokens=256", "lower it"),
                         (f"eval.label={tmp_path}/label.py:label", "must return a string or None; got 7")):
        with pytest.raises(ValueError, match=words):
            in_process([*one, wrong], tmp_path / "out")
    assert in_process(one, tmp_path / "out") == 0
    assert labeller("") is None and labeller("tiny/task.py:strategy")("nothing", {}) is None


def test_a_policy_that_cannot_be_used_is_found_before_the_first_is_sampled(tmp_path, monkeypatch):
    """Two that share a folder, one without weights, one without config: the first one's hours are not spent."""
    command = ["--config", str(ROOT / "configs/eval_tiny.toml"), f'eval.benchmarks=["{ROOT}/tiny/test.jsonl"]',
               "eval.label=", f"output.dir={tmp_path}/out"]
    for name in ("m/final", "a/b", "a-b"):
        shutil.copytree("tiny/policy", tmp_path / name)
    (tmp_path / "m" / "final" / "model.safetensors").unlink()
    monkeypatch.chdir(tmp_path)
    for second, words in (("m/final", "has no model.safetensors"),
                          ("m", "'m' has no config.json; did you mean m/final"),
                          ("a-b", "a/b and a-b would both be evaluated in .*/a-b;")):
        with pytest.raises(ValueError, match=words):
            main([*command, "--model", "a/b", "--model", "./a/b/", "--model", second])
        assert not list((tmp_path / "out").glob("*/*.jsonl"))


@pytest.mark.parametrize("damage", ["zeros", "cut", "end of line missing", "line missing"])
def test_damaged_parts_are_sampled_again(finished, tmp_path, monkeypatch, damage):
    """What a power failure leaves of a part file: whole problems in front of it are kept, the others made again, and
    all ends with the same bytes."""
    def interrupted(*arguments, **options):             # in b, with four of six problems on disk
        for i, groups in enumerate(sampled(*arguments, **options)):
            if arguments[-1] == "b" and i == 2:
                signal.raise_signal(signal.SIGINT)
            yield groups

    sampled = eval_module.sample_groups
    monkeypatch.setattr(eval_module, "sample_groups", interrupted)
    assert in_process(finished[0], tmp_path) == 130
    monkeypatch.undo()
    part, = (tmp_path / "tiny-policy").glob("b.parts/rank0.jsonl")
    lines = part.read_bytes().splitlines(keepends=True)
    damaged = {"zeros": [*lines[:5], b"\0" * 700], "cut": [*lines[:-1], lines[-1][:20]],
               "end of line missing": [*lines[:-1], lines[-1][:-1]], "line missing": [*lines[:6], *lines[7:]]}
    part.write_bytes(b"".join(damaged[damage]))
    assert in_process(finished[0], tmp_path) == 0 and contents(tmp_path / "tiny-policy") == contents(finished[1])


def test_samples_that_were_not_written_are_missed(finished, tmp_path, monkeypatch):
    """A write that lost something is an error, not a benchmark with fewer problems.

    The same command makes up for it.
    """
    sampled = eval_module.sample_groups
    monkeypatch.setattr(eval_module, "sample_groups", lambda *arguments, **options: (
        [groups[0], *(group[:1] for group in groups[1:])] for groups in sampled(*arguments, **options)))
    with pytest.raises(ValueError, match=r"kept.jsonl has \d of 14 problems, the others were not written; the same "
                                         r"command continues"):
        in_process(finished[0], tmp_path)
    monkeypatch.undo()
    assert in_process(finished[0], tmp_path) == 0 and contents(tmp_path / "tiny-policy") == contents(finished[1])
    final = tmp_path / "tiny-policy" / "a.samples.jsonl"
    final.write_bytes(b"".join(final.read_bytes().splitlines(keepends=True)[:4]))
    results = tmp_path / "tiny-policy" / "results.jsonl"
    results.write_text("{}\n")
    with pytest.raises(ValueError, match="results.jsonl, line 1: 'model' is missing.*remove the file"):
        in_process(finished[0], tmp_path)
    results.unlink()
    with pytest.raises(ValueError, match="a.samples.jsonl has whole samples of 1 of 14 problems; remove it"):
        in_process(finished[0], tmp_path)


def test_an_interrupt_while_figures_are_made_leaves_a_whole_folder(finished, tmp_path, monkeypatch):
    made = eval_module.summarize
    monkeypatch.setattr(eval_module, "summarize", lambda *arguments: signal.raise_signal(signal.SIGINT))
    assert in_process(finished[0], tmp_path) == 130 and not (tmp_path / "tiny-policy" / "results.jsonl").exists()
    monkeypatch.setattr(eval_module, "summarize", made)
    assert in_process(finished[0], tmp_path) == 0 and contents(tmp_path / "tiny-policy") == contents(finished[1])


def test_named_protocol_stands_between_file_and_command_line():
    """The published settings replace the file's and give way to the command line's; the problem is in the prompt."""
    config = load(Config, "configs/eval_math.toml", [*PROTOCOLS["paper"], "eval.samples=2"])
    assert (config.eval.samples, config.eval.samples_of, config.eval.temperature, config.eval.top_p,
            config.eval.max_new_tokens) == (2, {}, 0.6, 0.95, 32768)
    assert config.eval.prompt.endswith("\n\n{problem}") and "$\\boxed{ANSWER}$" in config.eval.prompt
    assert config.output.require_box is False and config.data.system == ""
    ours = load(Config, "configs/eval_math.toml")
    assert "\\boxed{}" in ours.eval.prompt and ours.eval.samples >= 16 and set(ours.eval.samples_of.values()) == {4}


def run_eval(*arguments):
    return subprocess.run([sys.executable, "eval.py", "--config", "configs/eval_tiny.toml", *arguments],
                          capture_output=True, text=True)


@pytest.mark.smoke
def test_eval_command_keeps_every_sample(tmp_path):
    """The README's command on 10 problems: figures printed, all samples on disk, and the figures are those of the
    samples."""
    with open("tiny/test.jsonl") as file:
        (tmp_path / "few.jsonl").write_text("".join(itertools.islice(file, 10)))
    result = run_eval("--model", "tiny/policy", f'eval.benchmarks=["{tmp_path}/few.jsonl"]',
                      f"output.dir={tmp_path}/out")
    assert result.returncode == 0, result.stderr
    assert "avg@32, 10 problems" in result.stdout and "effective strategies" in result.stdout
    samples = [json.loads(line)
               for line in (tmp_path / "out" / "tiny-policy" / "few.samples.jsonl").read_text().splitlines()]
    record = json.loads((tmp_path / "out" / "tiny-policy" / "results.jsonl").read_text())
    assert len(samples) == 320 and record["accuracy"] == sum(s["correct"] for s in samples) / 320
    again = summarize("few", samples)
    assert all(record[key] == value for key, value in again.items())


@pytest.mark.smoke
def test_eval_errors_are_one_line(tmp_path, monkeypatch, capsys):
    for arguments, word in ((["--model", str(tmp_path / "none")], "model.path"),
                            (["eval.benchmarks=[]"], "eval.benchmarks"), (["eval.top_p=1.5"], "eval.top_p"),
                            (["eval.samples_of={nothing = 4}"], "eval.samples_of.nothing"),
                            (["eval.prompt=solve it"], "eval.prompt"),
                            (['eval.benchmarks=["x=hub:nothing"]'], "eval.benchmarks"),
                            (["diversity.embedder=tiny/none", f"output.dir={tmp_path}/out"], "diversity.embedder")):
        monkeypatch.setattr(sys, "argv", ["eval.py", "--config", "configs/eval_tiny.toml", *arguments])
        with pytest.raises(SystemExit) as exit_:
            run_main(main)
        error = capsys.readouterr().err
        assert exit_.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1 and word in error
