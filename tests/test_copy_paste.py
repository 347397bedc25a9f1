"""What a docstring calls copy-pasteable runs alone.

Its source text, that of the helpers it names, and the names it says it needs.
"""
import ast
import importlib
import math
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Hashable, Sequence

import pytest
import torch
from conftest import ROOT
from test_layout import FOLDERS, LEVELS

NEEDS = {"torch": {"torch": torch, "Tensor": torch.Tensor}, "math": {"math": math}, "Counter": {"Counter": Counter},
         "Sequence": {"Sequence": Sequence}, "Hashable": {"Hashable": Hashable}, "builtins": {}}


def functions(path) -> dict[str, tuple[str, str]]:
    """{name: (source, docstring)} of the functions of a module."""
    source = path.read_text(encoding="utf-8")
    nodes = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
    return {node.name: (ast.get_source_segment(source, node), ast.get_docstring(node) or "") for node in nodes}


MODULES = {path.stem: functions(path) for path in sorted(ROOT.glob("*.py"))}
MARKED = [(module, name) for module, found in MODULES.items() for name, (_, doc) in found.items()
          if "copy-pasteable" in doc.lower()]


def promise(module: str, name: str) -> tuple[list[str], list[str]]:
    """(helpers, needs) of a marked function, as its docstring has them."""
    match = re.search(r"Copy-pasteable(?: with ((?:`\w+`(?:, | and )?)+))?: needs only ([\w, ]+)\.",
                      " ".join(MODULES[module][name][1].split()))
    assert match, f"{module}.{name} is called copy-pasteable, but not in the words that this test reads"
    return re.findall(r"\w+", (match[1] or "").replace(" and ", ", ")), re.split(", | and ", match[2])


def pasted(module: str, name: str):
    """The function made of source text, with its helpers and those that they name in turn."""
    namespace, sources, todo = {}, {}, [name]
    while todo:
        part = todo.pop()
        if part not in sources:
            sources[part], doc = MODULES[module][part]
            if "Copy-pasteable" in doc:
                helpers, needs = promise(module, part)
                todo += helpers
                for need in needs:
                    namespace |= NEEDS[need]
    exec("\n\n".join(sources.values()), namespace)
    return namespace[name]


generator = torch.Generator().manual_seed(0)
EMBEDDINGS = torch.randn(3, 5, 7, generator=generator)
SIMILARITY = torch.corrcoef(EMBEDDINGS[0]).clamp(min=0.1)
REWARDS = torch.tensor([1.0, -1.0, 0.5, 0.0, 2.0])
LOGITS, UNIFORM = torch.randn(4, 50, generator=generator), torch.rand(4, generator=generator, dtype=torch.float64)
LOGP = torch.randn(2, 6, generator=generator)
CALLS = {                                               # every path through each function
    "reward.cosine_similarity": [lambda f: f(EMBEDDINGS)],
    "reward.graph_cut_smi": [lambda f: f(SIMILARITY)],
    "reward.log_det_smi": [lambda f: f(SIMILARITY), lambda f: f(SIMILARITY.bfloat16(), 0.5)],
    "reward.smi_values": [lambda f: f(SIMILARITY), lambda f: f(SIMILARITY, "log_det"),
                          lambda f: f(SIMILARITY, sharpen=2.0, correct=REWARDS > 0)],
    "reward.diversity_weights": [lambda f: f(SIMILARITY), lambda f: f(SIMILARITY, "log_det", normalize="mean")],
    "reward.apply_weights": [lambda f: f(REWARDS, SIMILARITY[0]), lambda f: f(REWARDS, SIMILARITY[0], "divide")],
    "reward.adjust_rewards": [lambda f: f(REWARDS, SIMILARITY),
                              lambda f: f(REWARDS, SIMILARITY, scope="correct", normalize="mean", negative="divide")],
    "reward.adjust": [lambda f: torch.stack(f(REWARDS, SIMILARITY, "graph_cut", 2.0, scope="correct")),
                      lambda f: torch.stack(f(REWARDS, SIMILARITY, weights_G=SIMILARITY[0]))],
    "reward.redistribute": [lambda f: f(REWARDS, SIMILARITY[0], REWARDS > 0),
                            lambda f: f(REWARDS, SIMILARITY[0], REWARDS < 3, 0.5)],
    "reward.dra_advantages": [lambda f: torch.stack(f(REWARDS, SIMILARITY, REWARDS > 0)),
                              lambda f: torch.stack(f(REWARDS, SIMILARITY, REWARDS > 0, "none", apply="advantage"))],
    "reward.group_advantages": [lambda f: f(REWARDS), lambda f: f(REWARDS, "none")],
    "learner.token_weights": [lambda f, loss=loss: f(torch.ones(2, 3), loss, rows=2, tokens=6, max_new_tokens=9)
                              for loss in ("grpo", "dr_grpo", "dapo")],
    "learner.policy_loss": [lambda f: f(LOGP, torch.zeros(2, 6), torch.tensor([1.0, -2.0]), 0.2, 0.3)],
    "learner.kl_k3": [lambda f: f(LOGP, torch.zeros(2, 6))],
    "sampler.sample_tokens": [lambda f, options=options: torch.stack([x.double() for x in f(LOGITS, UNIFORM, *options)])
                              for options in ((0.7,), (0.0,), (1.0, 0.5))],
    "metrics.pass_at_k": [lambda f: f(8, 3, 2)],
    "metrics.maj_at_k": [lambda f, k=k: f(["a", "b", None, "a", "b", "c", "c"], "a", k) for k in (1, 3, 4, 7)],
    "metrics.vendi_score": [lambda f: f(SIMILARITY)],
    "embedder.reasoning_span": [lambda f, text=text: torch.tensor(f(text))
                                for text in ("<think>a</think>b", "a \\boxed{1}", "a", "</think>")],
    "metrics.effective_labels": [lambda f: f(["a", "b", "b"])],
}


@pytest.mark.parametrize(("module", "name"), MARKED, ids=[".".join(pair) for pair in MARKED])
def test_marked_functions_run_alone(module, name):
    """Bit-equal to the module's; a function marked anew needs a line in CALLS."""
    alone, original = pasted(module, name), getattr(importlib.import_module(module), name)
    assert alone.__globals__ is not original.__globals__
    for call in CALLS[f"{module}.{name}"]:
        result, expected = call(alone), call(original)
        assert torch.equal(torch.as_tensor(result), torch.as_tensor(expected)) and type(result) is type(expected)


def test_every_call_belongs_to_a_marked_function():
    """A mark that disappears, or whose wording changes, would otherwise take its test with it."""
    assert set(CALLS) == {".".join(pair) for pair in MARKED}
    for module, name in MARKED:
        body = ast.parse(MODULES[module][name][0])
        used = {node.id for node in ast.walk(body) if isinstance(node, ast.Name)}
        helpers, needs = promise(module, name)
        assert set(helpers) | set(needs) <= used | {"torch", "builtins"}, f"{module}.{name} names what it does not use"


@pytest.mark.parametrize("module", sorted(set(LEVELS[0]) - FOLDERS))
def test_a_module_that_says_so_can_be_copied_alone(module, tmp_path):
    """Into an empty folder, from where nothing else of ours can be imported; reward.py shows its example there."""
    path = shutil.copy(ROOT / f"{module}.py", tmp_path)
    assert "Imports nothing of ours" in (ROOT / f"{module}.py").read_text(encoding="utf-8")
    result = subprocess.run([sys.executable, "-I", path], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) == (9 if module == "reward" else 0), "a header and eight completions"


def test_the_folder_answers_can_be_copied_alone(tmp_path):
    """Into an empty folder, next to a script that grades; neither torch nor, with a box, math-verify is imported."""
    shutil.copytree(ROOT / "answers", tmp_path / "answers", ignore=shutil.ignore_patterns("__pycache__"))
    assert "Imports nothing of ours" in (ROOT / "answers" / "__init__.py").read_text(encoding="utf-8")
    code = ("import sys; sys.path.insert(0, '.'); from answers import gold_of, grade; "
            "print(grade('so \\\\boxed{1/2}', gold_of('0.5')).reason, *{'torch', 'math_verify'} & set(sys.modules))")
    result = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "equal\n"), result.stderr
