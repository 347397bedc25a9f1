"""README.md and docs/ say what is there: links, files, commands, settings, functions, code and estimates."""
import argparse
import ast
import importlib
import io
import json
import re
import runpy
import shlex
import sys
import types
from collections.abc import Iterator
from contextlib import redirect_stderr
from dataclasses import fields
from functools import partial
from itertools import product
from typing import get_type_hints

import pyarrow
import pytest
import torch
from conftest import ROOT
from pyarrow import parquet

import dra_grpo
import eval as evaluation
import learner
from config import check, load, parse_value
from data import DataConfig, load_problems
from eval_samples import OwnGrader
from metrics import Trackers, group_figures
from model import Transformer
from prompts import load_tokenizer, messages_of, prompt_text, stop_ids
from reward import adjust_rewards, cosine_similarity, graph_cut_smi, group_advantages

README = "README.md"
PAGES = [README, *(str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("docs/*.md"))), "benchmarks/RESULTS.md"]
TEXTS = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
BLOCKS = [(page, *match.groups()) for page, text in TEXTS.items()
          for match in FENCE.finditer(re.sub(r"\\\n\s*", "", text))]          # commands of several lines are one
PROSE = {page: FENCE.sub("", text) for page, text in TEXTS.items()}
SPANS = [(page, span) for page, text in PROSE.items() for span in re.findall(r"`([^`\n]+(?:\n[^`\n]+)?)`", text)]
SECTIONS = {**get_type_hints(evaluation.Config), **get_type_hints(dra_grpo.Config)}        # training has more keys
KEYS = {f"{section}.{field.name}" for config in (evaluation.Config, dra_grpo.Config)
        for section, cls in get_type_hints(config).items() for field in fields(cls)}
STANDS_FOR = {r"\bFILE\b": "configs/tiny.toml", r"\bSEED\b": "0", r" \.\.\.": ""}


# ------------------------------------------------------------------------------------------------ links and files


def anchors(page: str) -> set[str]:
    """GitHub's: the heading in lower case, without punctuation, spaces as hyphens."""
    headings = re.findall(r"^#+ (.+)$", PROSE[page], re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", PROSE[page]):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        found = (ROOT / page).parent / path if path else ROOT / page
        assert found.exists(), f"{page}: {target}"
        if anchor:
            assert anchor in anchors(str(found.resolve().relative_to(ROOT.resolve()))), f"{page}: {target}"


def alternatives(pattern: str) -> Iterator[str]:
    """a{b,c} as ab, ac, as a shell has it."""
    parts = [part[1:-1].split(",") if part.startswith("{") else [part] for part in re.split(r"(\{[^}]*\})", pattern)]
    return map("".join, product(*parts))


def test_files_that_are_named_exist():
    """In this repository's folders; a name may have {a,b} and *."""
    place = re.compile(r"(configs|benchmarks|tests|tiny|docs)/[\w./{},*-]*")
    named = [(page, span) for page, span in SPANS if place.fullmatch(span)]
    assert len(named) > 10
    for page, span in named:
        for name in alternatives(span):
            assert list(ROOT.glob(name.rstrip("/"))), f"{page}: {name}"


# ------------------------------------------------------------------------------------------------ commands and settings


def commands() -> Iterator[tuple[str, str]]:
    """(page, command line) in code blocks and in running text, without variables set before it."""
    lines = [(page, line) for page, language, block in BLOCKS if not language for line in block.splitlines()] + SPANS
    for page, line in lines:
        if match := re.match(r"(?:[A-Z_]+=\S+ )*((?:python|torchrun) .*)", " ".join(line.split())):
            command = match[1]
            for placeholder, value in STANDS_FOR.items():
                command = re.sub(placeholder, value, command)
            yield page, command


class Parsed(BaseException):
    """Carries what a program's own parser made of its arguments past everything that would catch an error."""


def run_until_parsed(monkeypatch, run, arguments: list[str]) -> argparse.Namespace:
    """`run()` as a program with `arguments`, ended as soon as its parser has read them."""
    depth = 0

    def ending(original):
        def parse(self, *arguments, **options):
            nonlocal depth
            depth += 1                                  # a parser calls its own methods and those of its commands
            try:
                result = original(self, *arguments, **options)
            finally:
                depth -= 1
            if depth == 0:
                raise Parsed(result[0] if isinstance(result, tuple) else result)
            return result
        return parse

    with monkeypatch.context() as patch, redirect_stderr(io.StringIO()) as errors:
        for name in ("parse_args", "parse_known_args", "parse_intermixed_args"):
            patch.setattr(argparse.ArgumentParser, name, ending(getattr(argparse.ArgumentParser, name)))
        patch.setattr(sys, "argv", ["program", *arguments])
        patch.setattr(sys, "path", [*sys.path])
        try:
            run()
        except Parsed as parsed:
            return parsed.args[0]
        except SystemExit:
            pytest.fail(errors.getvalue())
    pytest.fail("the program has no parser")


def check_command(monkeypatch, words: list[str]) -> None:
    """The program exists and its parser takes the options; settings are those of its config, with values that fit."""
    if words[0] == "torchrun":
        from torch.distributed.run import get_args_parser

        args = get_args_parser().parse_args(words[1:])
        words = ["python", args.training_script, *args.training_script_args]
    program, arguments = words[1], words[2:]
    if program == "-m" and arguments[0] == "pytest":
        marks = (ROOT / "pytest.ini").read_text(encoding="utf-8")
        for word in " ".join(arguments[1:]).split():
            assert (ROOT / word).exists() or word in ("-m", "and", "not") or f"\n    {word}: " in marks, word
        return
    if program == "-m":
        program, *arguments = arguments
        package = ROOT / program.replace(".", "/")
        assert package.with_suffix(".py").exists() or (package / "__main__.py").exists(), program
        for name in (program, f"{program}.__main__"):   # imported by another test; runpy would warn of two copies
            monkeypatch.delitem(sys.modules, name, raising=False)
        run = partial(runpy.run_module, program, run_name="__main__", alter_sys=True)
    else:
        assert (ROOT / program).exists(), program
        run = partial(runpy.run_path, str(ROOT / program), run_name="__main__")
    if not arguments or arguments == ["--help"]:
        return
    args = run_until_parsed(monkeypatch, run, arguments)
    if "config" in args:
        module = importlib.import_module(program.removesuffix(".py"))
        load(module.Config, args.config, args.overrides)
    for override in getattr(args, "overrides", []):
        check_setting(override)


def check_setting(text: str) -> None:
    """section.key=value as the command line takes it: a known key and a value of its type."""
    key, _, value = text.partition("=")
    section, _, name = key.strip().partition(".")
    assert name in get_type_hints(SECTIONS[section]), f"unknown setting {key}"
    check(key, parse_value(value.strip()), get_type_hints(SECTIONS[section], include_extras=True)[name])


@pytest.mark.parametrize("page", PAGES)
def test_commands_exist_with_their_options(page, monkeypatch):
    """Every python and torchrun command: its own parser reads the arguments here, and nothing else of it runs."""
    monkeypatch.chdir(ROOT)
    found = [command for other, command in commands() if other == page]
    assert found
    for command in found:
        try:
            check_command(monkeypatch, shlex.split(command, comments=True))
        except (ValueError, AssertionError, pytest.fail.Exception) as error:
            pytest.fail(f"{page}: {command}\n{error}")


def test_a_command_that_does_not_exist_is_noticed(monkeypatch):
    """The check itself: a wrong file, option, command, key or value fails."""
    monkeypatch.chdir(ROOT)
    train, evaluate = "python dra_grpo.py --config configs/tiny.toml", "python eval.py --config configs/eval_tiny.toml"
    for command in ("python nothing.py", "python -m nothing", "torchrun --nothing dra_grpo.py run.steps=1",
                    "python dra_grpo.py --config configs/nothing.toml", f"{train} --nothing", f"{train} run.step=1",
                    f"{train} run.steps=many", f"{evaluate} run.steps=1", "python -m report nothing runs/a",
                    "python -m report kernel RUN dra.nothing=1", "python -m pytest -m fast"):
        with pytest.raises((ValueError, AssertionError, pytest.fail.Exception, SystemExit)):
            check_command(monkeypatch, command.split())


def test_settings_and_functions_that_are_named_exist():
    """`section.key`, with a value that fits if there is one, or `module.function`."""
    named = 0
    for page, span in SPANS:
        if re.fullmatch(r"([a-z]+\.[a-z_]+=[^\s\[{]+ ?)+", span):
            settings = span.split()
        else:
            settings = [span] if re.fullmatch(r"[a-z]+\.[a-z_]+( = .+)?", span, re.S) else []
        for text in settings:
            key = text.partition("=")[0].strip()
            section, _, name = key.partition(".")
            if section not in SECTIONS or name in ("py", "toml", "jsonl", "json"):
                continue
            named += 1
            if "=" in text:
                check_setting(" ".join(text.split()))
            else:
                assert key in KEYS or hasattr(importlib.import_module(section), name), f"{page}: {span}"
    assert named > 50


def test_the_step_names_functions():
    """The table of the algorithm: every function of every line is where it says."""
    table = TEXTS[README].split("## The step\n")[1].split("\n## ")[0]
    names = re.findall(r"`([a-z_]+)\.([\w.]+)`", table)
    assert len(names) > 10
    for module, path in names:
        found = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
        assert callable(found)


# ------------------------------------------------------------------------------------------------ code and figures


def test_python_blocks_compile():
    blocks = [(page, block) for page, language, block in BLOCKS if language == "python"]
    assert len(blocks) >= 5
    for page, block in blocks:
        compile(ast.parse(block), page, "exec")


def test_dra_in_five_lines_is_dra():
    """The README's block on random groups, one with opposite embeddings and rewards of all signs, against reward.py."""
    block = next(block for page, _, block in BLOCKS if page == README and "graph_cut_smi" in block)
    assert len(block.splitlines()) == 5
    generator = torch.Generator().manual_seed(0)
    embeddings, reward = torch.randn(3, 6, 4, generator=generator), torch.randn(3, 6, generator=generator)
    embeddings[0, 1], reward[0, 2] = -embeddings[0, 0], 0.0
    logp, old_logp = torch.randn(2, 18, 5, generator=generator)
    names = {"torch": torch, "cosine_similarity": cosine_similarity, "graph_cut_smi": graph_cut_smi,
             "policy_loss": learner.policy_loss, "embeddings": embeddings, "reward": reward, "logp": logp,
             "old_logp": old_logp, "clip_low": 0.2, "clip_high": 0.3}
    exec(block, names)
    adjusted = adjust_rewards(reward, cosine_similarity(embeddings))
    advantage = group_advantages(adjusted, "none")
    assert not torch.equal(adjusted, reward)
    torch.testing.assert_close(names["reward"], adjusted)
    torch.testing.assert_close(names["advantage"], advantage)
    torch.testing.assert_close(names["loss"], learner.policy_loss(logp, old_logp, advantage.view(-1), 0.2, 0.3))


@pytest.fixture
def dry_run(monkeypatch, capsys):
    """The figures that --dry-run prints: peak, host memory, seconds or hours as they are written, cost."""
    def run(recipe: str, *arguments: str) -> dict[str, str]:
        monkeypatch.chdir(ROOT)
        assert dra_grpo.main(["--config", recipe, "--dry-run", *arguments]) == 0
        return re.search(r"peak: (?P<peak>~\S+ GB) .*, (?P<host>~\S+ GB) of host memory\n(?:.*\n)*?"
                         r"time: rollout (?P<rollout>~.+), update (?P<update>~.+), together (?P<step>~.+) a step\n"
                         r"(?:.*\n)*?the run: 500 steps in (?P<run>~[^,\n]+)(?:, cost (?P<cost>~\S+))?",
                         capsys.readouterr().out).groupdict()
    return run


def cells(page: str, header: str) -> list[list[str]]:
    """The rows of the table whose first line begins with `header`."""
    lines = TEXTS[page].split(f"\n{header}", 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_tables_of_memory_time_and_cost_are_what_dry_runs_print(dry_run):
    """Figures of a 1.5B run: a change of plan/ or of a recipe changes them. Those in bold were measured."""
    gpu, results, checked = "docs/gpu.md", "benchmarks/RESULTS.md", 0
    for key, recipe, peak, rollout, update, run, price in cells(gpu, "| `--gpu` | recipe |"):
        if "measured" in key:
            assert all(figure.startswith("**") for figure in (peak, rollout, update))
            continue
        cost, at = price.split(" at ")
        printed = dry_run(recipe.strip("`"), "--gpu", key.strip("`"), "--price", at)
        assert (peak, rollout, update, run, cost) == tuple(
            printed[name] for name in ("peak", "rollout", "update", "run", "cost")), key
        checked += 1
    for ranks, peak, host in cells(gpu, "| GPUs | peak on each |"):
        world, _, setting = ranks.partition(", ")
        printed = dry_run("configs/dra_grpo.toml", "--gpu", "h100", "--gpus", world,
                          "model.activation_checkpointing=true", *filter(None, [setting.strip("`")]))
        assert (peak, host) == (printed["peak"], printed["host"]), ranks
        checked += 1
    for key, world, _, *figures in cells(results, "| `--gpu` | `--gpus` |"):
        printed = dry_run("configs/dra_grpo.toml", "--gpu", key.strip("`"), "--gpus", world)
        assert figures == [printed[name] for name in ("peak", "rollout", "update", "step", "run")], key
        checked += 1
    assert checked == 16


def test_every_metric_is_explained():
    """Keys of committed records, and those that groups and samples get today, are in the manual or evaluation.md."""
    with open(ROOT / "benchmarks/tiny_runs/tiny-seed0.metrics.jsonl", encoding="utf-8") as file:
        records = {record["kind"]: record for record in map(json.loads, file)}
    sample = {"problem": 0, "sample": 0, "gold": "1", "answer": "1", "vote": "1", "correct": True, "reason": "equal",
              "finish": "stop", "length": 3, "label": "a", "cut": False, "reward": 1.0, "rewards": {"accuracy": 1.0},
              "smi": 0.0, "weight": 1.0, "adjusted": 1.0, "advantage": 0.0}
    keys = {"docs/manual.md": {*records["train"], *group_figures([{"similarity": 0.5, "completions": [sample]}])},
            "docs/evaluation.md": {*records["eval"], *evaluation.summarize("a", [sample])}}
    for page, written in keys.items():
        named = {span.removesuffix(".*") for other, span in SPANS if other == page}
        assert written - {"kind", "step", "time", "benchmark"} <= named, page


# ------------------------------------------------------------------------------------------------ what users bring


def table(header: str) -> list[list[list[str]]]:
    """The rows of the table of rewards.md whose first cell has `header`.

    The code in each cell, or its text without any.
    """
    lines = TEXTS["docs/rewards.md"].split(f"| {header} |", 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    cells = [re.split(r"(?<!\\)\|", line.replace("\\|", "\0"))[1:-1] for line in lines]
    return [[[code.replace("\0", "|") for code in re.findall(r"`([^`]+)`", cell)] or [cell.strip()] for cell in row]
            for row in cells]


def loaded(folder, row: str, settings: list[str]) -> tuple[list[dict], dra_grpo.Config]:
    (folder / "d.jsonl").write_text(row + "\n", encoding="utf-8")
    config = load(dra_grpo.Config, "configs/tiny.toml", [setting for setting in settings if setting])
    return load_problems(str(folder / "d.jsonl"), config.data, gold=not config.reward.correct), config


ROWS = table("what rows have")


@pytest.mark.parametrize("cells", ROWS, ids=[cells[0][0] for cells in ROWS])
def test_rows_are_read_as_the_table_says(cells, tmp_path):
    """The user turn and the gold of each row under its settings."""
    _, (row,), settings, (asked,), (gold,) = cells
    (problem,), config = loaded(tmp_path, row, settings)
    assert messages_of(problem, config.data)[-1]["content"] == asked
    assert gold in (problem["answer"], json.dumps(problem["answer"]))
    assert len(ROWS) == 10 and ("trace" in problem) == ("trace" in row and "data.columns" not in settings[0])


@pytest.mark.parametrize("cells", table("a row that is refused"),
                         ids=[cells[0][0] for cells in table("a row that is refused")])
def test_rows_are_refused_as_the_table_says(cells, tmp_path):
    (row,), (words,) = cells
    with pytest.raises(ValueError, match=f"d.jsonl, line 1: .*{re.escape(words)}"):
        loaded(tmp_path, row, [])


def test_several_files_are_one_source(tmp_path, monkeypatch):
    """Settings as the page has them: a list, and a pattern in the order of the numbers."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for name in ("a.jsonl", "data/part-2.jsonl", "data/part-10.jsonl"):
        (tmp_path / name).write_text(json.dumps({"problem": name, "answer": "1"}) + "\n")
    parquet.write_table(pyarrow.table({"problem": ["b.parquet"], "answer": ["1"]}), "b.parquet")
    found = re.findall(r"`(data\.train=[^`]+)`", TEXTS["docs/rewards.md"])
    read = [[row["problem"] for row in load_problems(
        load(dra_grpo.Config, ROOT / "configs/tiny.toml", [setting]).data.train, DataConfig())]
            for setting in found]
    assert read == [["a.jsonl", "b.parquet"], ["data/part-2.jsonl", "data/part-10.jsonl"]]


def test_the_policy_is_asked_as_the_table_says(tmp_path, monkeypatch):
    """Each setting of the table: what becomes of a prompt, and what ends a completion."""
    settings = [cells[1][0] for cells in table("what the policy needs")]
    folder = ROOT / "tiny/policy"
    data = [load(dra_grpo.Config, "configs/tiny.toml",
                 [setting, *(["data.chat_template=my.jinja"] if "args" in setting else [])]).data
            for setting in settings]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.jinja").write_text("Q{% if enable_thinking is false %} quick{% endif %}: {{ "
                                       "messages[-1]['content'] }}")
    asked = [prompt_text(load_tokenizer(folder, each), "1+2", each) for each in data]
    assert asked == ["Q: 1+2", "1+2", "Q quick: 1+2", "<|user|>1+2<|assistant|>"]
    model, tokenizer = Transformer.from_pretrained(folder), load_tokenizer(folder)
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    assert stop_ids(model, tokenizer, data[3]) == sorted({end, 7}) != stop_ids(model, tokenizer)


def example(page: str, name: str) -> str:
    return next(block for other, language, block in BLOCKS if other == page and language == "python"
                and f"def {name}(" in block)


def test_the_example_of_what_is_right(tmp_path):
    (tmp_path / "my.py").write_text(example("docs/rewards.md", "ends_with_sum"))
    grades = OwnGrader(f"{tmp_path}/my.py:ends_with_sum").grade_rows(["so 3.", "\\boxed{3}", "4"],
                                                                     [{"problem": "1+2", "answer": None}] * 3)
    assert [grade.correct for grade in grades] == [True, True, False]


def test_the_example_of_a_tracker(tmp_path, monkeypatch):
    """With a stand-in for the library: settings of the run record, then numbers at their steps."""
    seen = []
    stand_in = types.SimpleNamespace(set_experiment=seen.append, log_params=seen.append,
                                     log_metrics=lambda values, step: seen.append((step, values)))
    monkeypatch.setitem(sys.modules, "mlflow", stand_in)
    (tmp_path / "my.py").write_text(example("docs/manual.md", "to_mlflow"))
    trackers = Trackers([f"{tmp_path}/my.py:to_mlflow"], tmp_path, {}, 0)
    trackers.log([{"kind": "run", "step": 0, "config": {"learner": {"lr": 0.1}}, "git": "abc"},
                  {"kind": "train", "step": 1, "reward": 0.5}])
    assert seen == ["dra-grpo", {"lr": 0.1, "git": "abc"}, (1, {"train/reward": 0.5})]


# ------------------------------------------------------------------------------------------------ words


def test_the_readme_stays_short():
    """Two screens of what, how and where; what goes over 1,600 words (1,340 when written) belongs into docs/."""
    assert len(TEXTS[README].split()) <= 1600


@pytest.mark.parametrize("page", PAGES)
def test_words_are_the_fields_and_lines_fit(page):
    """A GPU is a GPU; prose fits into 120 columns, two editors side by side (tables, code and links may be longer)."""
    assert not re.findall(r"\b(?:cards?|beside|learnt|mend(?:s|ed)?)\b", PROSE[page], re.I)
    lines = [line for line in PROSE[page].splitlines() if not line.startswith("|") and "](" not in line]
    assert not [line for line in lines if len(line) > 120]


def test_tests_that_are_named_exist():
    """`tests/file.py::name` on any page; docs/claims.md rests on them, and has one of four verdicts in every row."""
    named = {(file, test) for text in PROSE.values() for file, test in re.findall(r"`(tests/\w+\.py)::(\w+)`", text)}
    missing = [f"{file}::{test}" for file, test in sorted(named)
               if not re.search(rf"^def {test}\(", (ROOT / file).read_text(encoding="utf-8"), re.M)]
    assert len(named) > 50 and not missing
    cells = [line.strip("| ").split(" | ") for line in TEXTS["docs/claims.md"].splitlines() if line.startswith("| ")]
    verdicts = [row[1] for row in cells if row[1:2] != ["verdict"]]
    assert len(verdicts) > 90 and set(verdicts) <= {"built", "measured", "refuted", "not tested"}
