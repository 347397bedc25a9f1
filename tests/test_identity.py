"""checkpoint.py: a run or an evaluation does not go on with other files under the same names without saying so."""
import json
import shutil
from pathlib import Path

import pytest
from test_loop import run as train_here
from test_run import records

import eval as evaluation
import checkpoint
from config import load
from dra_grpo import Config

FUNCTIONS = {"reward": "def f(texts, **_):\n    return [1.0 for _ in texts]\n",
             "right": "def f(texts, problems):\n    return [True for _ in texts]\n",
             "label": "def f(text, row):\n    return 'a'\n",
             "weights": "def f(similarity, rewards, rows):\n    return rewards * 0 + 1\n"}
SUMS = ["1+2", "3+4", "5+6", "7+8"]


def settings(folder: Path) -> list[str]:
    functions = {name: f"{folder}/{name}.py:f" for name in FUNCTIONS}
    return ["sampler.max_new_tokens=8", "run.steps=1", f"model.path={folder}/policy", f"dra.embedder={folder}/embedder",
            f"data.train={folder}/part-*.jsonl", f"data.chat_template={folder}/t.jinja", "eval.samples=1",
            "eval.max_new_tokens=4", f'reward.functions={{"{functions["reward"]}" = 1.0}}',
            f"reward.correct={functions['right']}",
            f"dra.weights={functions['weights']}", f"eval.label={functions['label']}",
            f'eval.benchmarks=["{folder}/test.jsonl"]']


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A finished run of one step whose every file is its own."""
    folder = tmp_path_factory.mktemp("identity")
    shutil.copytree("tiny/policy", folder / "policy")
    shutil.copytree("tiny/embedder", folder / "embedder")
    shutil.copy("tiny/policy/chat_template.jinja", folder / "t.jinja")
    for name, text in FUNCTIONS.items():
        (folder / f"{name}.py").write_text(text)
    for name in ("part-1", "part-2", "test"):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"problem": p}) + "\n" for p in SUMS))
    train_here(folder / "r", SUMS, *settings(folder))
    return folder


def append(path: Path) -> None:
    path.write_text(path.read_text() + "\n")


CHANGES = [("data.train: .*part-1.jsonl is another", lambda f: append(f / "part-1.jsonl")),
           ("data.train: .*part-3.jsonl is new", lambda f: shutil.copy(f / "part-1.jsonl", f / "part-3.jsonl")),
           ("data.train: .*part-2.jsonl is gone", lambda f: (f / "part-2.jsonl").unlink()),
           ("eval.benchmarks: .*test.jsonl is another", lambda f: append(f / "test.jsonl")),
           ("data.chat_template: .*t.jinja is another", lambda f: append(f / "t.jinja")),
           ("model.path: tokenizer.json is another", lambda f: append(f / "policy" / "tokenizer.json")),
           ("dra.embedder: .*is another", lambda f: append(next((f / "embedder").rglob("*.json")))),
           *((f"{key}: .*{name}.py is another", lambda f, name=name: append(f / f"{name}.py")) for key, name in
             (("reward.functions", "reward"), ("reward.correct", "right"), ("eval.label", "label"),
              ("dra.weights", "weights")))]


def test_the_advantages_hook_is_part_of_a_run(tmp_path):
    (tmp_path / "rule.py").write_text("def f(**_): pass\n")
    config = load(Config, "configs/tiny.toml", [f"dra.advantages={tmp_path}/rule.py:f"])
    assert f"dra.advantages: {tmp_path}/rule.py" in checkpoint.identity_of_functions(config)


@pytest.mark.parametrize(("words", "change"), CHANGES, ids=[words for words, _ in CHANGES])
def test_a_run_does_not_go_on_with_other_files(begun, tmp_path, monkeypatch, words, change):
    """Refused by name before anything is written; every kind of file that settings name, and what a pattern matches."""
    kept = {path: path.read_bytes() for path in begun.rglob("*") if path.is_file()
            and "r" not in path.relative_to(begun).parts}
    before = (begun / "r" / "metrics.jsonl").read_bytes()
    try:
        change(begun)
        with pytest.raises(ValueError,
                           match=rf"holds a run with other files \({words}\).* remove .*identity.json to go on"):
            train_here(begun / "r", SUMS, *settings(begun), "run.steps=2")
    finally:
        (begun / "part-3.jsonl").unlink(missing_ok=True)
        for path, content in kept.items():
            path.write_bytes(content)
    assert (begun / "r" / "metrics.jsonl").read_bytes() == before


def test_without_its_identity_a_run_goes_on_and_says_so(begun, tmp_path, capsys):
    """A run folder of an earlier version, or one whose owner has fixed a reward function and knows it."""
    shutil.copytree(begun / "r", tmp_path / "r")
    (tmp_path / "r" / "identity.json").unlink()
    train_here(tmp_path / "r", SUMS, *settings(begun), "run.steps=2")
    said = capsys.readouterr().out
    assert "identity.json is missing: whether the run began with these files cannot be checked" in said
    assert [r["step"] for r in records(tmp_path / "r" / "metrics.jsonl") if r["kind"] == "train"] == [1, 2]
    assert (tmp_path / "r" / "identity.json").read_bytes() == (begun / "r" / "identity.json").read_bytes()


def test_other_benchmarks_are_no_other_files(begun, tmp_path):
    """Evaluations may change when a run goes on; of them only files that stay are compared."""
    shutil.copytree(begun / "r", tmp_path / "r")
    shutil.copy(begun / "test.jsonl", tmp_path / "more.jsonl")
    train_here(tmp_path / "r", SUMS, *settings(begun), "run.steps=2", f'eval.benchmarks=["{tmp_path}/more.jsonl"]',
               "eval.label=")


def test_a_hub_data_set_counts_as_its_problems(tmp_path, monkeypatch):
    """It has no file to look at; its rows are what was trained on."""
    monkeypatch.setattr(checkpoint, "files_of", lambda source: ["hub:a/b"])
    row = {"id": 0, "problem": "1+2", "answer": "3"}
    one, other, more = (checkpoint.identity_of_source("data.train", "hub:a/b", [{**row, **change}])
                        for change in ({}, {"answer": "4"}, {"trace": "long"}))
    assert one != other and one == more and list(one) == ["data.train: hub:a/b"]


def test_an_evaluation_does_not_go_on_with_other_functions(begun, tmp_path, capsys):
    """Half of the samples labelled by one function and half by another; an identity.json from before functions were in
    it is taken, with a word."""
    shutil.copy(begun / "label.py", tmp_path / "label.py")
    command = ["--config", "configs/eval_tiny.toml", f'eval.benchmarks=["{begun}/test.jsonl"]', "eval.samples=1",
               "eval.max_new_tokens=4", f"reward.correct={begun}/right.py:f", f"eval.label={tmp_path}/label.py:f",
               f"output.dir={tmp_path}/out"]
    assert evaluation.main(command) == 0
    append(tmp_path / "label.py")
    with pytest.raises(ValueError, match="weights, problems or functions .*eval.label: .*label.py is another"):
        evaluation.main(command)
    path, = tmp_path.glob("out/*/identity.json")
    known = json.loads(path.read_text())
    path.write_text(json.dumps({name: digest for name, digest in known.items() if ": " not in name}))
    capsys.readouterr()
    assert evaluation.main(command) == 0
    assert "does not have eval.label: " in capsys.readouterr().out
