"""The adapters of integrations/ run by the trainers they are for: the real packages, installed for the test (slow).

TRL is in test_integrations.py.
"""
import ast
import json
import os
import subprocess
import sys
import sysconfig
import textwrap
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from test_integrations import REWARDS, TEXTS, adjusted

from reward import group_advantages

# what the trainers import, but for what needs a GPU; torch and transformers are this environment's
PACKAGES = ["ray[default]", "tensordict<=0.10.0", "TransferQueue", "hydra-core", "torchdata", "codetiming", "peft",
            "cachetools", "uvicorn", "fastapi", "pylatexenc", "dill", "optree", "einops"]
# three prompts by turns; row 7 begins with what a tool said
ROWS = [{"uid": "abc"[i % 3], "session": i // 3, "texts": [text], "tool": "tool says 5" if i == 7 else "",
         "score": reward} for i, (text, reward) in enumerate(zip(TEXTS, REWARDS))]
pytestmark = pytest.mark.slow


def pip_install(python: str, *arguments: str) -> None:
    """Skips the test, with the reason, where pip cannot install."""
    result = subprocess.run([python, "-m", "pip", "install", "-q", *arguments], capture_output=True, text=True)
    if result.returncode:
        pytest.skip(f"pip could not install: {(result.stderr.strip() or result.stdout).splitlines()[-1]}")


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> str:
    """An environment of its own on top of this one."""
    folder = tmp_path_factory.mktemp("trainers") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    site = next(folder.glob("lib/python*/site-packages"))
    (site / "this_environment.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    pip_install(str(folder / "bin/python"), *PACKAGES)
    return str(folder / "bin/python")


def example(module: str) -> str:
    """The lines that the docstring of an adapter tells people to write, with the tiny embedder and policy."""
    docstring = ast.get_docstring(ast.parse((ROOT / f"integrations/{module}.py").read_text(encoding="utf-8")))
    lines = textwrap.dedent("\n".join(line for line in docstring.splitlines() if line.startswith("    ")))
    lines = lines.replace("DraConfig()", 'DraConfig(embedder="tiny/embedder", sharpen=2.0)')
    return lines.replace("Qwen/Qwen3-0.6B", "tiny/policy")


def run(python: str, package: str, driver: str, rows: list[dict], folder: Path, **environment: str) -> dict:
    """The result of a driver next to this file with `package` installed; folder/my_dra.py can be imported."""
    site = folder / "package"
    pip_install(python, "--no-deps", "--target", str(site), package)
    if package.startswith("openrlhf"):
        trainer = site / "openrlhf/trainer/ppo_trainer.py"
        imports, rest = trainer.read_text(encoding="utf-8").split("\nlogger = ", 1)
        lines = (folder / "my_dra.py").read_text(encoding="utf-8")
        trainer.write_text(f"{imports}\n{lines}\nlogger = {rest}", encoding="utf-8")
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (site, folder, ROOT))), "HOME": str(folder),
                   "OMP_NUM_THREADS": "1", **environment}
    result = subprocess.run([python, f"tests/{driver}.py", str(folder)], capture_output=True, text=True, cwd=ROOT,
                            timeout=600, env=environment)
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))


def expected(rows: list[dict], eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Adjusted rewards and advantages of each row; a group of one has its reward as advantage, as in verl."""
    groups = [row["uid"] for row in rows]
    rewards = adjusted([row["texts"][-1] for row in rows], [row["score"] for row in rows], groups, sharpen=2.0)
    advantages = rewards.clone()
    for group in set(groups):
        members = [i for i, other in enumerate(groups) if other == group]
        if len(members) > 1:
            advantages[members] = group_advantages(rewards[members], eps=eps)
    return rewards, advantages


def assert_spread(tokens: list[float], mask: list[int], value: torch.Tensor) -> None:
    """`value` on every token of the policy and 0 elsewhere, to 1e-5."""
    spread = value * torch.tensor(mask, dtype=torch.float32)
    torch.testing.assert_close(torch.tensor(tokens), spread, rtol=1e-5, atol=1e-5)


def test_verl_v1_ends_up_with_our_advantages(python, tmp_path):
    """verl 0.9.1 with its TransferQueue on Ray: rows in any order, padding, a session of two outputs, tool tokens."""
    rows = [{**row, "texts": ["a first try", *row["texts"]]} if i == 4 else row for i, row in enumerate(ROWS[:11])]
    (tmp_path / "my_dra.py").write_text(example("verl_v1"), encoding="utf-8")
    result = run(python, "verl==0.9.1", "trainers_verl_v1", rows, tmp_path, VERL_USE_EXTERNAL_MODULES="my_dra")
    assert result["bases"][:2] == ["DraTrainer", "PPOTrainerSync"]
    found = result["rows"]
    assert [row["padding"] for row in found.values()].count(True) == 4 and len(found) == 16
    assert list(found) != sorted(found), "balancing put rows in another order"
    _, advantages = expected(rows, eps=1e-6)
    for row, advantage in zip(rows, advantages):
        for output in range(len(row["texts"])):
            item = found.pop(f"{row['uid']}_{row['session']}_{output}")
            assert_spread(item["advantages"], item["response_mask"], advantage)
            assert sum(item["rm_scores"]) == item["rm_scores"][-1] == row["score"], "logged is the reward before DRA"
    assert all(item["padding"] and not any(item["advantages"]) for item in found.values())
    assert "group 'a', is nan" in result["refusal"]


@pytest.mark.parametrize("version", ["0.7.0", "0.7.1", "0.8.0", "0.9.1"])
def test_verl_ends_up_with_our_advantages(version, python, tmp_path):
    """RayPPOTrainer (in 0.9.1: trainer.use_v1=False): up to 0.7.0 a reward manager, from then on extract_reward."""
    manager = version == "0.7.0"
    (tmp_path / "my_dra.py").write_text(example("verl_manager" if manager else "verl_reward"), encoding="utf-8")
    rows = [*ROWS, {**ROWS[0], "uid": "alone"}]
    result = run(python, f"verl=={version}", "trainers_verl", rows, tmp_path,
                 VERL_USE_EXTERNAL_MODULES="" if manager else "my_dra")
    assert result["version"] == version
    rewards, advantages = expected(rows, eps=1e-6)
    for i, (reward, advantage) in enumerate(zip(rewards, advantages)):
        mask, scores = result["response_mask"][i], torch.tensor(result["token_level_rewards"][i])
        torch.testing.assert_close(scores.sum(), reward, rtol=1e-5, atol=1e-5)
        assert scores.nonzero().flatten().tolist() in ([], [max(t for t, one in enumerate(mask) if one)])
        assert_spread(result["advantages"][i], mask, advantage)
    assert result["validation"] == [row["score"] for row in rows]
    assert "group 'a', is nan" in result["refusal"]


def test_openrlhf_ends_up_with_our_advantages(python, tmp_path):
    """OpenRLHF 0.11.2, static and dynamic micro-batches, estimator group_norm."""
    rows = sorted(ROWS, key=lambda row: row["uid"])
    (tmp_path / "my_dra.py").write_text(example("openrlhf_reward"), encoding="utf-8")
    result = run(python, "openrlhf==0.11.2", "trainers_openrlhf", rows, tmp_path)
    rewards, advantages = expected(rows, eps=1e-9)
    for dynamic, items in result["batches"].items():
        order = [item["row"] for item in items]
        assert sorted(order) == list(range(12)) and (order != sorted(order)) == (dynamic == "True")
        for item in items:
            torch.testing.assert_close(torch.tensor(item["reward"]), rewards[item["row"]], rtol=1e-5, atol=1e-5)
            assert_spread(item["advantages"], item["action_mask"], advantages[item["row"]])
            assert item["logged"] == [item["reward"], rows[item["row"]]["score"]]
    nan, prompts, alone = result["refusals"]
    assert "completion 0 of 12, group 0, is nan" in nan
    assert "n_samples_per_prompt = 3 answer different prompts" in prompts and "at least 2" in alone
