"""Where modules stand: no import runs back up, copyable ones import nothing of ours, functions fit a screen."""
import ast

import pytest
from conftest import ROOT

# bottom up: a module imports only from lower levels; experiments/ stands on everything, and nothing on it
LEVELS = [level.split() for level in ("files config answers reward", "model metrics",
                                      "grader ranks sampler stream embedder data", "learner prompts checkpoint",
                                      "eval_samples", "plan", "eval", "dra_grpo report", "experiments")]
FOLDERS = {"answers", "experiments", "plan", "report"}
LEVEL = {module: level for level, modules in enumerate(LEVELS) for module in modules}
TREES = {path: ast.parse(path.read_text(encoding="utf-8"))
         for folder in (".", *sorted(FOLDERS)) for path in sorted(ROOT.glob(f"{folder}/*.py"))}


@pytest.mark.parametrize("path", TREES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_do_not_run_back_up(path):
    """At the top of a file or inside a function."""
    mine = path.relative_to(ROOT).parts[0].removesuffix(".py")
    froms = [node.module for node in ast.walk(TREES[path]) if isinstance(node, ast.ImportFrom)]
    plain = [alias.name for node in ast.walk(TREES[path]) if isinstance(node, ast.Import) for alias in node.names]
    ours = {name.split(".")[0] for name in froms + plain} & set(LEVEL)
    assert [name for name in ours if LEVEL[name] >= LEVEL[mine] and not mine == name in FOLDERS] == []


def test_the_top_has_at_most_17_modules():
    assert set(LEVEL) - FOLDERS == {path.stem for path in ROOT.glob("*.py")} and len(set(LEVEL) - FOLDERS) <= 17


def test_no_function_is_longer_than_60_lines():
    lengths = {f"{path.stem}.{node.name}": node.end_lineno - node.lineno + 1
               for path, tree in TREES.items() for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    assert {name: length for name, length in lengths.items() if length > 60} == {}
