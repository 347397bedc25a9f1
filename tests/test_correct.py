"""reward.correct: a function of the user's says what is right, in training, evaluation and reports, without golds."""
import json
import shutil

import pytest
from test_loop import run as train_here
from test_run import comparable, records

import eval as evaluation
from data import DataConfig, load_problems
from eval_samples import OwnGrader, assign_votes, grader_of
from grader import Grader
from report.__main__ import main as report

# right: a text whose last digit is that of the sum, whatever its form; labels and rewards look at a column of the row
FUNCTIONS = """
def ends_well(texts, problems):
    assert all(problem["answer"] is None and problem["kind"] for problem in problems)
    return [text.rstrip("}")[-1:] == str(sum(map(int, problem["problem"].split("+"))) % 10)
            for text, problem in zip(texts, problems)]

def scores(texts, problems): return [0.3] * len(texts)
def names(texts, problems): return ["yes"] * len(texts)
def nothing(texts, problems): return [None] * len(texts)
def one(texts, problems): return True
def short(texts, problems): return [True]
def pairs(texts, problems): return [(True, "85"), (False, None)]
def number(texts, problems): return [(True, 85)] * len(texts)
def triples(texts, problems): return [(True, "85", "why")] * len(texts)

def kind(text, row):
    return row["kind"] + text[:3]
"""
PROBLEMS = ["47+38", "12+19", "60+55"]
QUICK = ["sampler.max_new_tokens=32", "run.steps=2", "eval.samples=2", "eval.max_new_tokens=24"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of two steps, evaluated before and after, on problems without answers."""
    folder = tmp_path_factory.mktemp("correct")
    (folder / "my.py").write_text(FUNCTIONS)
    (folder / "data.jsonl").write_text("".join(json.dumps({"problem": p, "kind": "sum"}) + "\n" for p in PROBLEMS))
    train_here(folder / "r", PROBLEMS, *QUICK, f"data.train={folder}/data.jsonl", "dra.scope=correct",
               f"reward.correct={folder}/my.py:ends_well", f"eval.label={folder}/my.py:kind",
               f'eval.benchmarks=["{folder}/data.jsonl"]')
    return folder


def right(problem: str, text: str) -> bool:
    return text.rstrip("}")[-1:] == str(sum(map(int, problem.split("+"))) % 10)


def test_training_takes_its_verdicts(folder):
    """Accuracy reward, strategies and the neighbours of dra.scope = "correct" follow the function; golds are null."""
    groups = records(folder / "r" / "samples.jsonl")
    assert {group["answer"] for group in groups} == {None}
    found = [(right(g["problem"], c["text"]), c["correct"], c["reward"], c["reason"], c["answer"])
             for g in groups for c in g["completions"]]
    assert all(found[i] == (r, r, float(r), "right" if r else "wrong", None) for i, (r, *_) in enumerate(found))
    assert {r for r, *_ in found} == {True, False}
    for group in groups:
        lonely = [sum(c["correct"] for c in group["completions"] if c is not other) == 0
                  for other in group["completions"]]
        assert all((c["smi"] == 0) == alone
                   for c, alone in zip(group["completions"], lonely)), "SMI 0 only without right neighbours"


def test_its_evaluations_have_what_can_be_known_without_answers(folder):
    """Accuracy, pass@k and strategies; no majority vote, because two right completions need not agree on an answer."""
    before, *_ = (r for r in comparable(folder / "r" / "metrics.jsonl") if r["kind"] == "eval")
    assert before["maj_at_k"] == {} and before["no_answer"] is None and before["distinct_answers"] is None
    assert set(before["reasons"]) <= {"right", "wrong"} and before["accuracy"] == before["pass_at_k"]["1"]


def test_eval_takes_its_verdicts_too(folder, tmp_path):
    """One key in [reward] of its own file; the policy's file and another function have other verdicts."""
    config = tmp_path / "e.toml"
    config.write_text(f"""[model]
path = "{folder}/r/final"
[eval]
benchmarks = ["{folder}/data.jsonl"]
samples = 4
max_new_tokens = 32
[reward]
correct = "{folder}/my.py:ends_well"
[output]
dir = "{tmp_path}/out"
""")
    assert evaluation.main(["--config", str(config)]) == 0
    out, = (tmp_path / "out").iterdir()
    samples = records(out / "data.samples.jsonl")
    assert all(s["correct"] == right(PROBLEMS[s["problem"]], s["text"]) and s["gold"] is None for s in samples)
    assert all("vote" not in s for s in samples) and len({s["correct"] for s in samples}) == 2
    with pytest.raises(ValueError, match="other settings .*reward.correct"):
        evaluation.main(["--config", str(config), f"reward.correct={folder}/my.py:one"])


def test_reports_take_its_verdicts_and_the_same_rows(folder, tmp_path, capsys):
    """regrade asks the function again, by the row with all its columns.

    kernel --label gets the row that eval.label got.
    """
    run = tmp_path / "r"
    shutil.copytree(folder / "r", run)
    lines = (run / "samples.jsonl").read_text()
    (run / "samples.jsonl").write_text(lines.replace('"correct": true', '"correct": false', 1))
    assert report(["regrade", str(run), "--out", str(tmp_path / "out")]) == 0
    assert "1 verdicts changed" in capsys.readouterr().out
    assert (tmp_path / "out" / "samples.jsonl").read_text() == lines
    assert report(["kernel", str(run), "--label", f"{folder}/my.py:kind"]) == 0
    assert "AUC" in (with_function := capsys.readouterr().out) and "note" not in with_function
    assert report(["kernel", str(run)]) == 0
    assert capsys.readouterr().out == with_function, "the labels in the file are those of the same function and rows"
    assert report(["page", str(run), "--out", str(tmp_path / "page")]) == 0


def test_regrade_can_be_told_a_function(folder, tmp_path):
    """--correct on what the grader graded: a run of today's can be judged by tomorrow's function; and the grader cannot
    judge what has no golds."""
    with pytest.raises(ValueError, match="returned 0.3 for completion 0; expected True or False"):
        report(["regrade", str(folder / "r"), "--correct", f"{folder}/my.py:scores"])
    with pytest.raises(ValueError, match="None where a gold should be; name a function"):
        report(["regrade", str(folder / "r"), "--correct", ""])
    run = tmp_path / "r"
    shutil.copytree(folder / "r", run)
    (run / "config.toml").write_text((run / "config.toml").read_text().replace("data.jsonl", "gone.jsonl"))
    with pytest.raises(ValueError, match="gone.jsonl.*is not a file"):
        report(["regrade", str(run)])
    (tmp_path / "other.jsonl").write_text((folder / "data.jsonl").read_text().replace("+", "+1"))
    (run / "config.toml").write_text(
        (run / "config.toml").read_text().replace(str(folder / "gone.jsonl"), str(tmp_path / "other.jsonl")))
    with pytest.raises(ValueError, match="other.jsonl' no longer has the problem with the id 2"):
        report(["regrade", str(run)])


@pytest.mark.parametrize(("name", "words"), [
    ("scores", "returned 0.3 for completion 0; expected True or False"), ("names", "'yes' for completion 0"),
    ("nothing", "None for completion 0"), ("number", r"\(True, 85\) for completion 0"), ("triples", "why"),
    ("one", "type bool"), ("short", "1 values for 2 completions"),
    ("none", "no function")])
def test_anything_but_a_boolean_per_completion_is_a_line(folder, name, words):
    with pytest.raises(ValueError, match=f"reward.correct: .*my.py.*{words}"):
        OwnGrader(f"{folder}/my.py:{name}").grade_rows(["a", "b"], [{}, {}])


def test_it_may_tell_what_it_read(folder):
    """A pair (right, answer): the answer stands in the samples, and dra.text = "answer" embeds it."""
    grades = OwnGrader(f"{folder}/my.py:pairs").grade_rows(["a", "b"], [{}, {}])
    assert [(grade.correct, grade.reason, grade.answer) for grade in grades] == [(True, "right", "85"),
                                                                                 (False, "wrong", None)]


def test_it_is_not_asked_about_nothing(folder):
    """A rank without prompts, or prompts that all exceed the context: no call with empty lists."""
    assert OwnGrader(f"{folder}/my.py:short").grade_rows([], []) == []


def test_nobody_votes_under_a_function(folder):
    groups = [[{"answer": None, "correct": True, "gold": None}]]
    assign_votes(groups, OwnGrader(f"{folder}/my.py:one"))
    assert groups == [[{"answer": None, "correct": True, "gold": None}]]
    assert isinstance(grader_of("", 1, 1.0), Grader) and isinstance(grader_of(f"{folder}/my.py:one", 1, 1.0), OwnGrader)


@pytest.mark.parametrize("row",
                         [{}, {"answer": None}, {"answer": {"tests": ["f(1) == 2"]}}, {"answer": "?"}, {"answer": 3}])
def test_answers_stay_what_they_are(tmp_path, row):
    """Without golds nothing is asked of the column: the function gets what is there. The grader asks for golds."""
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps({"problem": "1+2", **row}) + "\n")
    assert load_problems(str(path), DataConfig(), gold=False)[0]["answer"] == row.get("answer")
    if row.get("answer") != 3:
        with pytest.raises(ValueError, match="d.jsonl, line 1: .*answer" if row else "or a function .* reward.correct"):
            load_problems(str(path), DataConfig())


def test_an_answer_that_no_file_of_samples_can_hold_is_refused(tmp_path):
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"problem": ["1+2"], "answer": [b"\x00"]}), tmp_path / "d.parquet")
    with pytest.raises(ValueError, match="row 1: column 'answer' cannot be written as JSON"):
        load_problems(str(tmp_path / "d.parquet"), DataConfig(), gold=False)
