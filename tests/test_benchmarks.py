"""benchmarks/gpu.py runs line by line without a GPU and can fail; benchmarks/update.py: both sides do the same."""
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from benchmarks import gpu


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_gpu_benchmark_smoke(tmp_path):
    """Nobody should rent a GPU to find a misspelt name: each check has one line, printed and kept, and none fails."""
    command = [sys.executable, "benchmarks/gpu.py", "--smoke", "--budget", "3600", "--out", str(tmp_path / "gpu.jsonl")]
    result = subprocess.run(command, capture_output=True, text=True)
    lines = lines_of(tmp_path / "gpu.jsonl")
    assert [json.loads(line) for line in result.stdout.splitlines()] == lines
    assert [line["check"] for line in lines] == list(gpu.CHECKS), result.stderr[-2000:]
    assert [line for line in lines if not line["ok"]] == [] and result.returncode == 0


def test_gpu_benchmark_goes_on_after_a_failure(tmp_path, monkeypatch, capsys):
    """An exception and nan are failed lines, the others run, and the exit code is 1; so nothing passes unseen."""
    def raises(bench, figures):
        figures["before"] = 1.5
        raise RuntimeError("no kernel")

    def is_nan(bench, figures):
        figures["gap"] = math.nan
        return {"gap": 1.0}

    def passes(bench, figures):
        figures |= {"gap": 1.0, "rollout_s": 2.0}
        return {"gap": 1.0}

    def is_skipped(bench, figures):
        raise gpu.Skipped("no package")

    checks = {function.__name__: gpu.Check(1, function) for function in (raises, is_nan, passes, is_skipped)}
    checks |= {"too_long": gpu.Check(1000, passes)}
    monkeypatch.setattr(gpu, "CHECKS", checks)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpu.main(["--smoke", "--out", str(tmp_path / "new" / "gpu.jsonl")]) == 1
    lines = {line["check"]: line for line in lines_of(tmp_path / "new" / "gpu.jsonl")}
    assert {name: line["ok"] for name, line in lines.items()} == {
        "raises": False, "is_nan": False, "passes": True, "is_skipped": None, "too_long": None}
    assert lines["raises"]["error"] == "RuntimeError: no kernel" and lines["raises"]["figures"] == {"before": 1.5}
    assert "test_benchmarks.py" in lines["raises"]["where"][-1]
    assert lines["is_nan"]["figures"] == {"gap": "nan"}
    assert lines["passes"]["figures"] == {"gap": 1.0, "rollout_s": "smoke"}
    assert lines["is_skipped"]["skipped"] == "no package" and "budget" in lines["too_long"]["skipped"]
    assert all({"check", "ok", "device", "commit", "torch"} <= set(line) for line in lines.values())
    assert gpu.main(["--smoke", "--out", str(tmp_path / "gpu.jsonl"), "--only", "passes"]) == 0
    assert len(lines_of(tmp_path / "gpu.jsonl")) == 1


def test_gpu_benchmark_needs_a_gpu(tmp_path, monkeypatch, capsys):
    """Without one it says so, and writes nothing."""
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--out", str(tmp_path / "gpu.jsonl")]) == 2
    assert "--smoke" in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_update_benchmark_compares_equal_work():
    """Loss and gradient norm of ours and of TRL's, as printed."""
    command = [sys.executable, "benchmarks/update.py", "--workloads", "tiny", "--rounds", "1", "--threads", "1"]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    found = re.findall(r"loss (\S+), norm (\S+)", out)
    assert len(found) == 3 and len(set(found)) == 1
