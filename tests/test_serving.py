"""What is trained here is served elsewhere: the policy's folders under the transformers that most people run."""
import json
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from data import DataConfig
from model import Transformer
from prompts import decode, load_tokenizer, prompt_tokens, stop_ids
from sampler import Sampler, SamplerConfig

VERSION = "4.57.6"
PROBLEMS = ["47+38", "12+19", "60+55", "é 7+8"]
# run in the other environment, with the folders as arguments: prints the version, and the greedy texts of each folder
READER = """
import json, sys, torch, transformers
found = [transformers.__version__]
for folder in sys.argv[2:]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    for problem in json.loads(sys.argv[1]):
        messages = [{"role": "user", "content": problem}]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=48, do_sample=False)
        found.append([ids[0].tolist(), tokenizer.decode(out[0, ids.shape[1]:], skip_special_tokens=True)])
print(json.dumps(found))
"""


def environment(folder: Path) -> Path:
    """The Python of an environment with the other transformers and the torch that is installed here; skips without a
    registry."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", f"transformers=={VERSION}"]
    if (done := subprocess.run(command, capture_output=True, text=True)).returncode:
        reason = (done.stderr.splitlines() or ["no reason given"])[-1]
        pytest.skip(f"pip cannot install transformers {VERSION}: {reason}")
    site, = folder.glob("lib/python*/site-packages")
    (site / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")      # after the environment's own packages
    return python


def ours(folder: Path) -> list:
    model, tokenizer = Transformer.from_pretrained(folder), load_tokenizer(folder)
    stops = stop_ids(model, tokenizer)
    sampler = Sampler(model, SamplerConfig(max_new_tokens=48, temperature=0.0), stops)
    prompts = [prompt_tokens(tokenizer, problem, DataConfig()) for problem in PROBLEMS]
    texts = decode(tokenizer, [group[0].tokens for group in sampler.generate(prompts, 1, (0,))], stops)
    return [[prompt, text] for prompt, text in zip(prompts, texts)]


@pytest.mark.slow
def test_transformers_4_reads_what_a_run_writes(tmp_path):
    """final/ and the policies of checkpoints give the same prompt tokens and the same greedy texts as here."""
    python = environment(tmp_path / "environment")
    run = tmp_path / "r"
    command = [sys.executable, "dra_grpo.py", "--config", "configs/tiny.toml", "data.prompts_per_step=4", "run.steps=2",
               "run.save_every=1", "eval.benchmarks=[]", "learner.lr=1e-3", f"run.dir={run}"]
    trained = subprocess.run(command, capture_output=True, text=True)
    assert trained.returncode == 0, trained.stderr
    folders = [run / "final", *sorted(run.glob("checkpoints/*/policy"))]
    assert len(folders) == 3
    read = subprocess.run([python, "-c", READER, json.dumps(PROBLEMS), *folders], capture_output=True, text=True)
    assert read.returncode == 0, read.stderr[-3000:]
    version, *found = json.loads(read.stdout.splitlines()[-1])
    assert version == VERSION
    assert found == [entry for folder in folders for entry in ours(folder)]
