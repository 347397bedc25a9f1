"""The real command: what it writes, that it continues where it stopped, that ranks do not matter, and what it says to
bad input."""
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import transformers
from conftest import ROOT
from test_learner import torchrun

import checkpoint
import dra_grpo
import eval as evaluation
from config import load
from dra_grpo import Config, main
from model import Transformer
from ranks import run_main
from sampler import Sampler, SamplerConfig

pytestmark = pytest.mark.smoke                          # but for the tests marked exact
SMALL = ["data.prompts_per_step=4", "run.steps=3", "run.save_every=1"]


def command(run_dir, *overrides, config="configs/tiny.toml"):
    return [sys.executable, "dra_grpo.py", "--config", config, *SMALL, f"run.dir={run_dir}", *overrides]


def few_tests(folder: Path) -> str:
    path = folder / "few.jsonl"
    path.write_text("".join(Path("tiny/test.jsonl").read_text().splitlines(keepends=True)[:8]))
    return f'eval.benchmarks=["{path}"]'


def records(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def comparable(path):
    """Records without run records, wall times and memory, which no two runs share."""
    return [{k: v for k, v in record.items() if k not in ("seconds", "peak_gb") and not k.endswith("_s")}
            for record in records(path) if record.get("kind") != "run"]


@pytest.fixture
def here(monkeypatch, capsys):
    """Runs the command's own main in this process; returns (exit code, stdout, stderr)."""
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["dra_grpo.py", *arguments])
        handlers = [(s, signal.getsignal(s)) for s in (signal.SIGINT, signal.SIGTERM)]
        with pytest.raises(SystemExit) as exit_:
            run_main(main)
        for s, handler in handlers:
            signal.signal(s, handler)
        return exit_.value.code, *capsys.readouterr()
    return call


def test_run_folder_holds_what_the_readme_says(run):
    folder, result, _ = run
    metrics = records(folder / "metrics.jsonl")
    assert [(r["kind"], r["step"]) for r in metrics] == [("run", 0), ("eval", 0), ("train", 1), ("train", 2),
                                                         ("train", 3), ("eval", 3)]
    assert {"benchmark", "accuracy", "effective_strategies", "n", "samples"} <= set(metrics[1])
    assert all(0 <= r["gap"] < 1e-6 and r["gap_max"] < 5e-5 for r in metrics
               if r["kind"] == "train"), "sampler and learner agree per token"
    assert load(Config, folder / "config.toml").data.prompts_per_step == 4
    assert [p.name for p in sorted((folder / "checkpoints").iterdir())] == ["step-000002", "step-000003"]
    for word in ("accuracy", "effective strategies", str(folder / "final"), str(folder / "samples.jsonl")):
        assert word in result.stdout
    assert "step 3/3 | reward" in result.stdout
    assert "train:" not in result.stderr, "where nobody looks on, no bar between the lines"


@pytest.mark.exact
def test_samples_hold_whole_groups_that_add_up(run):
    """Raw reward, SMI, weight, adjusted reward and advantage of a group must follow from each other."""
    groups = records(run[0] / "samples.jsonl")
    assert [(g["step"], g["position"]) for g in groups] == [(step, position) for step in (1, 2, 3)
                                                            for position in range(4)]
    for group in groups:
        rows = group["completions"]
        assert len(rows) == 8 and {"text", "label", "correct", "reason"} <= set(rows[0])
        adjusted = torch.tensor([r["adjusted"] for r in rows])
        for r in rows:
            assert r["reward"] == float(r["correct"])
            assert r["adjusted"] == pytest.approx(r["reward"] / (1 + r["smi"]) if r["reward"] > 0 else r["reward"])
        torch.testing.assert_close(torch.tensor([r["advantage"] for r in rows]),
                                   (adjusted - adjusted.mean()) / (adjusted.std() + 1e-4))


@pytest.mark.exact
def test_final_folder_gives_the_same_tokens_and_logits_in_transformers(run):
    ours = Transformer.from_pretrained(run[0] / "final")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(run[0] / "final")
    tokenizer = transformers.AutoTokenizer.from_pretrained(run[0] / "final")
    messages = [{"role": "user", "content": "47+38"}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    ids = torch.tensor([prompt])
    expected = theirs.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=64,
                               do_sample=False)[0, len(prompt):].tolist()
    got = Sampler(ours, SamplerConfig(max_new_tokens=64, temperature=0.0), [0]).generate([prompt], 1, (0,))
    assert got[0][0].tokens == expected
    with torch.no_grad():
        assert (ours(ids) - theirs(ids).logits).abs().max() < 1e-4
    start = Transformer.from_pretrained("tiny/policy").state_dict()
    assert any(not torch.equal(tensor, start[name])
               for name, tensor in ours.state_dict().items()), "training changed the policy"


def assert_same_run(a, b, exact):
    assert comparable(a / "samples.jsonl") == comparable(b / "samples.jsonl") if exact else [
        [c["text"] for c in g["completions"]] for g in records(a / "samples.jsonl")] == [
            [c["text"] for c in g["completions"]] for g in records(b / "samples.jsonl")]
    weights = [torch.cat([t.flatten() for t in Transformer.from_pretrained(x / "final").state_dict().values()])
               for x in (a, b)]
    if exact:
        assert comparable(a / "metrics.jsonl") == comparable(b / "metrics.jsonl")
        assert torch.equal(*weights)
    else:
        assert (weights[0] - weights[1]).norm() <= 1e-6 * weights[0].norm()


@pytest.mark.exact
def test_two_ranks_train_the_same_policy(run, run_on_two_ranks):
    """torchrun with two gloo ranks and FSDP2: the same completions and evaluation, and weights equal to 1e-6 (fp32,
    whole vector)."""
    assert_same_run(run[0], run_on_two_ranks[0], exact=False)
    assert records(run_on_two_ranks[0] / "metrics.jsonl")[0]["world"] == 2
    before = [comparable(folder / "metrics.jsonl")[0] for folder in (run[0], run_on_two_ranks[0])]
    assert before[0] == before[1] and before[0]["kind"] == "eval", "ranks share the problems; figures are those of all"


@pytest.mark.exact
def test_the_same_command_continues_bit_equal(run, tmp_path, here):
    """A copy cut back to step 2, with the records of a third step and half a line still in its files.

    The end must be that of the uninterrupted run.
    """
    folder = tmp_path / "r"
    shutil.copytree(run[0], folder)
    for name in ("metrics.jsonl", "samples.jsonl"):
        with open(folder / name, "a") as file:
            file.write('{"kind": "train", "step": 4, "posi')
    shutil.rmtree(folder / "final")
    shutil.rmtree(folder / "checkpoints" / "step-000003")
    result = subprocess.run(command(folder, run[2]), capture_output=True, text=True)
    assert result.returncode == 0 and "continuing at step 2" in result.stdout, result.stderr
    assert_same_run(run[0], folder, exact=True)
    code, out, _ = here(*command(folder, run[2])[2:])
    assert code == 0 and "complete" in out, "a finished run says so and changes nothing"
    assert_same_run(run[0], folder, exact=True)

    # stopped in the last evaluation: saved without its record, and without final/; both are made up for
    shutil.rmtree(folder / "final")
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    assert json.loads(lines[-1])["kind"] == "eval"
    meta = folder / "checkpoints" / "step-000003" / "meta.json"
    cut = json.loads(meta.read_text())
    cut["sizes"]["metrics"] = sum(len(line.encode()) for line in lines[:-1])
    meta.write_text(json.dumps(cut))
    assert here(*command(folder, run[2])[2:])[0] == 0
    assert_same_run(run[0], folder, exact=True)


@pytest.mark.parametrize(("name", "harm"), [
    ("policy/model.safetensors", lambda path: path.write_bytes(path.read_bytes()[:-100])),
    ("state/", lambda path: next(path.glob("*.safetensors")).unlink()),
    ("policy/config.json", lambda path: path.write_bytes(path.read_bytes().replace(b"silu", b"gelu"))),
    ("meta.json", lambda path: path.write_text("{")),
], ids=["truncated", "missing", "flipped", "no meta"])
def test_damaged_checkpoint_is_put_aside(name, harm, run, tmp_path, capsys):
    """The newest one is damaged: it is named and kept under another name, and the one before is used."""
    shutil.copytree(run[0] / "checkpoints", tmp_path / "checkpoints")
    folder = tmp_path / "checkpoints" / "step-000003"
    harm(folder / name)
    assert checkpoint.newest_intact(tmp_path).name == "step-000002"
    assert name in capsys.readouterr().err and folder.with_name("damaged-step-000003").is_dir() and not folder.exists()
    assert checkpoint.newest_intact(tmp_path).name == "step-000002" and not capsys.readouterr().err, "named once"


@pytest.mark.exact
def test_run_goes_on_from_the_checkpoint_before_and_reads_no_pickle(run, tmp_path, here, monkeypatch):
    folder = tmp_path / "r"
    shutil.copytree(run[0], folder)
    shutil.rmtree(folder / "final")
    (folder / "checkpoints" / "step-000003" / "meta.json").unlink()

    def refuse(*arguments, **options):
        raise AssertionError("a pickle was read")
    for target in ("pickle.load", "pickle.loads", "pickle.Unpickler", "torch.load"):
        monkeypatch.setattr(target, refuse)
    code, out, err = here(*command(folder, run[2])[2:])
    assert code == 0 and "continuing at step 2" in out and "is damaged (meta.json" in err
    monkeypatch.undo()
    assert_same_run(run[0], folder, exact=True)


def test_a_run_folder_has_one_writer(run, tmp_path, here):
    """The second is refused by name and changes nothing; a killed owner leaves no lock behind."""
    folder = tmp_path / "r"
    shutil.copytree(run[0], folder)
    before = {path: path.read_bytes() for path in folder.glob("*.*")}
    hold = ("import files, pathlib, time\n"
            f"with files.lock(pathlib.Path({str(folder)!r})): print('held', flush=True); time.sleep(60)")
    owner = subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE, text=True)
    assert owner.stdout.readline() == "held\n"
    code, _, err = here(*command(folder, run[2], "run.steps=4")[2:])
    assert code == 2 and str(owner.pid) in err and "Traceback" not in err
    assert {path: path.read_bytes() for path in folder.glob("*.*")} == before
    owner.kill()
    owner.wait()
    assert here(*command(folder, run[2])[2:])[0] == 0


@pytest.mark.slow
def test_full_disk_is_one_line_and_leaves_the_checkpoints(run, tmp_path):
    """A limit on file size stands for the disk: the checkpoint of step 4 does not fit, those before stay intact."""
    folder = tmp_path / "r"
    shutil.copytree(run[0], folder)
    limit = 300_000                                     # bytes: more than the logs, less than the policy
    assert limit < (folder / "final" / "model.safetensors").stat().st_size
    result = subprocess.run(command(folder, run[2], "run.steps=4"), capture_output=True, text=True,
                            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    assert result.returncode == 2 and "no room left" in result.stderr and "Traceback" not in result.stderr
    assert checkpoint.newest_intact(folder).name == "step-000003"


ENDLESS = ["eval.benchmarks=[]", "run.save_every=1000", "run.steps=100000", "dra.enabled=false"]


def wait_for_steps(metrics: Path) -> None:
    deadline = time.time() + 120
    while time.time() < deadline and not (metrics.exists() and len(metrics.read_text().splitlines()) > 3):
        time.sleep(0.05)


def stopped_midway(arguments: list[str], metrics: Path, signum: int) -> tuple[int, str]:
    """(exit code, stderr) of a run that gets `signum` once it has logged at least three steps.

    It must end within 30 seconds.
    """
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               env={**os.environ, "OMP_NUM_THREADS": "1"})
    wait_for_steps(metrics)
    process.send_signal(signum)
    _, stderr = process.communicate(timeout=30)
    return process.returncode, stderr


def test_interrupt_saves_and_the_same_command_continues(tmp_path, here):
    """Ctrl-C in the middle of a step: the step is dropped, what was done is saved, and it ends within seconds."""
    metrics = tmp_path / "r" / "metrics.jsonl"
    code, stderr = stopped_midway(command(tmp_path / "r", *ENDLESS), metrics, signal.SIGINT)
    assert code == 128 + signal.SIGINT and "the same command continues" in stderr and "Traceback" not in stderr
    done = records(metrics)[-1]["step"]
    saved = json.loads((tmp_path / "r" / "checkpoints" / f"step-{done:06d}" / "meta.json").read_text())
    assert saved["step"] == done >= 3
    code, out, _ = here(*command(tmp_path / "r", *ENDLESS, f"run.steps={done + 1}")[2:])
    assert code == 0 and f"continuing at step {done}" in out
    assert [r["step"] for r in records(metrics) if r["kind"] == "train"] == list(range(1, done + 2))


@pytest.mark.parametrize("work", ["update", "save"])
def test_an_interrupt_outside_sampling_is_remembered(tmp_path, here, monkeypatch, work):
    """A signal in an update or in a save, which no exception may cut short.

    The step counts, is saved, and the next run goes on from it.
    """
    owner, name = (dra_grpo.Learner, "update") if work == "update" else (checkpoint, "save")
    done, calls = getattr(owner, name), []

    def interrupted(*arguments):
        calls.append(0)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return done(*arguments)

    monkeypatch.setattr(owner, name, interrupted)
    code, _, error = here(
        *command(tmp_path / "r", *ENDLESS, "run.save_every=1" if work == "save" else "run.keep=2")[2:])
    assert code == 130 and "interrupted after step 2 of 100000, saved" in error and "Traceback" not in error
    code, out, _ = here(*command(tmp_path / "r", *ENDLESS, "run.steps=3")[2:])
    assert code == 0 and "continuing at step 2" in out
    assert "run.steps was 100000: the learning rate of the first 2 steps followed that" in out


def test_fewer_steps_than_were_done_are_refused(run, here):
    before = {path.name: path.read_bytes() for path in run[0].iterdir() if path.is_file() and path.name != "lock"}
    code, _, error = here(*command(run[0], "run.steps=2")[2:])
    assert code == 2 and "holds a run of 3 steps, run.steps = 2 is less" in error
    code, out, _ = here(*command(run[0], "run.save_every=7")[2:])
    assert code == 0 and "is complete" in out and "continuing" not in out
    assert {path.name: path.read_bytes() for path in run[0].iterdir() if path.is_file()
            and path.name != "lock"} == before


def test_interrupt_under_torchrun_saves_on_all_ranks(tmp_path):
    """SIGTERM to torchrun reaches both ranks; they agree on the step, save together, and nobody hangs."""
    metrics = tmp_path / "r" / "metrics.jsonl"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    _, stderr = stopped_midway([*launch, *command(tmp_path / "r", *ENDLESS)[1:]], metrics, signal.SIGTERM)
    assert "the same command continues" in stderr
    done = records(metrics)[-1]["step"]
    assert (tmp_path / "r" / "checkpoints" / f"step-{done:06d}" / "meta.json").exists()


def on_two_ranks(arguments: list[str], **options) -> subprocess.Popen:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.Popen([*launch, *arguments[1:]], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                            env={**os.environ, "OMP_NUM_THREADS": "1"})


def errors(stderr: str) -> list[str]:
    """What our ranks said; torchrun itself ends with a traceback and a summary."""
    found = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert stderr.count("Traceback") == 1 and found, stderr
    return found


@pytest.mark.slow
def test_error_in_a_users_function_on_one_rank_ends_all_with_one_message(tmp_path):
    """The second rank's third call raises: both ranks end, one line names rank, step, function and place, and what was
    saved stays."""
    (tmp_path / "mine.py").write_text("""import os
calls = 0
def picky(texts, **_):
    global calls
    calls += 1
    if os.environ["RANK"] == "1" and calls == 3:
        return [1 / 0 for _ in texts]
    return [0.5] * len(texts)
""")
    functions = f'reward.functions={{accuracy = 1.0, "{tmp_path}/mine.py:picky" = 0.1}}'
    process = on_two_ranks(command(tmp_path / "r", *ENDLESS, "run.save_every=1", functions))
    _, stderr = process.communicate(timeout=60)
    assert process.returncode != 0
    message, = errors(stderr)
    for word in ("rank 1: step 3:", "mine.py:picky", "ZeroDivisionError", "line 7"):
        assert word in message
    assert checkpoint.newest_intact(tmp_path / "r").name == "step-000002"


@pytest.mark.slow
def test_killed_rank_is_named_and_the_others_end(tmp_path):
    """SIGKILL, as from the system when memory is short: the survivor says which rank has ended and in which step."""
    metrics = tmp_path / "r" / "metrics.jsonl"
    process = on_two_ranks(command(tmp_path / "r", *ENDLESS))
    wait_for_steps(metrics)
    ranks = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    victim = next(pid for pid in ranks if b"\0RANK=1\0" in b"\0" + Path(f"/proc/{pid}/environ").read_bytes())
    os.kill(victim, signal.SIGKILL)
    _, stderr = process.communicate(timeout=30)
    message, = errors(stderr)
    assert "rank 1 has ended" in message and "step " in message and "same command" in message


@pytest.mark.slow
def test_two_nodes_train_together(run_on_two_ranks, tmp_path):
    """Two torchrun agents of one rank each that meet over a c10d rendezvous, as on two machines: bit-equal to two ranks
    of one agent."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend",
              "c10d", "--rdzv-endpoint", f"localhost:{free_port()}", "--rdzv-id", "nodes", "--local-addr", "localhost"]
    arguments = [*launch, *command(tmp_path / "r", run_on_two_ranks[2])[1:]]
    nodes = [subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                              env={**os.environ, "OMP_NUM_THREADS": "1"}) for _ in range(2)]
    ends = [node.communicate(timeout=120) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], ends
    assert_same_run(run_on_two_ranks[0], tmp_path / "r", exact=True)


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("localhost", 0))
        return server.getsockname()[1]


@pytest.mark.slow
def test_checkpoints_load_on_other_numbers_of_ranks(run, tmp_path):
    """A step each on two, one and four ranks: the same completions, and weights equal to 1e-6."""
    for step, ranks in ((1, 2), (2, 1), (3, 4)):
        result = torchrun(ranks, "dra_grpo.py", *command(tmp_path / "r", run[2], f"run.steps={step}",
                                                         "learner.schedule=constant", "learner.warmup=0.0")[2:])
        assert result.returncode == 0, result.stderr[-3000:]
    result = subprocess.run(command(tmp_path / "whole", run[2], "learner.schedule=constant", "learner.warmup=0.0"),
                            capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert_same_run(tmp_path / "whole", tmp_path / "r", exact=False)


@pytest.mark.parametrize(("overrides", "words"), [
    (["sampler.group_sise=4"], ["sampler.group_sise", "sampler.group_size"]),
    (["sampler.group_size=1"], ["sampler.group_size", ">= 2"]),
    (["sampler.temperature=0"], ["sampler.temperature", "> 0"]),
    (["run.steps=0"], ["run.steps", ">= 1"]),
    (["learner.lr=-1e-6"], ["learner.lr", ">= 0"]),
    (["learner.clip_low=1.0"], ["learner.clip_low", "< 1"]),
    (["learner.clip_high=-0.1"], ["learner.clip_high", ">= 0"]),
    (["learner.loss=ppo"], ["learner.loss", "dr_grpo"]),
    (["run.seed=x"], ["run.seed", "int"]),
    (["nonsense"], ["section.key=value"]),
    (["data.train=none.jsonl"], ["data.train", "none.jsonl"]),
    (["eval.benchmarks=[\"none.jsonl\"]"], ["eval.benchmarks", "none.jsonl"]),
    (["model.path=nowhere/at/all"], ["model.path", "nowhere/at/all"]),
    (["dra.embedder=tiny/nothing"], ["dra.embedder", "tiny/nothing"]),
    (["dra.embedder=./nothing"], ["dra.embedder", "./nothing", "policy"]),
    (["dra.max_tokens=5"], ["dra.max_tokens", "tiny/embedder"]),
    (["dra.text=prompt"], ["dra.text", "reasoning"]),
    (["dra.text=answer", "dra.embedder=policy"], ["policy", "dra.text = \"completion\""]),
    (["dra.smi=log_det", "dra.sharpen=2"], ["log_det", "sharpen"]),
    (["dra.smi=log_det", "dra.scope=correct"], ["log_det", "scope"]),
    (["dra.clamp=false", "dra.sharpen=2"], ["clamp", "sharpen"]),
    (["reward.functions={speed = 1.0}"], ["speed", "accuracy"]),
    (["reward.functions={}"], ["reward.functions"]),
    (["data.template=solve it"], ["data.template", "{problem}"]),
    (["sampler.max_new_tokens=255"], ["max_prompt_tokens", "max_new_tokens", "256"]),
    (["data.max_prompt_tokens=2"], ["data.max_prompt_tokens", "2"]),
    (["eval.label=tiny/task.py:nothing"], ["eval.label", "nothing"]),
    (["dra.weights=none.py:f"], ["dra.weights", "none.py"]),
    (["dra.advantages=none.py:f"], ["dra.advantages", "none.py"]),
    (["dra.advantages=a.py:f", "dra.weights=b.py:f"], ["dra.advantages", "dra.weights"]),
    (["dra.advantages=a.py:f", "dra.apply=advantage"], ["dra.advantages", "dra.apply"]),
    (["dra.apply=advantage", "dra.clamp=false"], ["apply", "clamp"]),
    (["dra.bonus=0.2"], ["bonus", "apply"]),
])
def test_bad_input_is_one_line_and_exit_code_2(overrides, words, tmp_path, here):
    """No traceback, nothing written."""
    code, _, error = here(*command(tmp_path / "r", *overrides)[2:])
    assert code == 2 and error.startswith("error: ") and error.count("\n") == 1
    for word in words:
        assert word in error
    assert not (tmp_path / "r" / "metrics.jsonl").exists()


def test_bad_config_files(tmp_path, here):
    (tmp_path / "broken.toml").write_text("[model\n")
    for name in ("broken.toml", "none.toml"):
        code, _, error = here("--config", str(tmp_path / name))
        assert code == 2 and error.startswith("error: ") and error.count("\n") == 1 and name in error


def test_the_script_itself_exits_with_2(tmp_path):
    result = subprocess.run(command(tmp_path / "r", "run.steps=0"), capture_output=True, text=True)
    assert result.returncode == 2 and result.stderr == "error: run.steps must be >= 1; got 0\n"


def test_no_resume_refuses_a_used_folder(run, here):
    code, _, error = here(*command(run[0], "run.resume=false")[2:])
    assert code == 2 and "run.resume" in error


def test_resuming_with_other_settings_lists_what_differs(run, here):
    before = (run[0] / "config.toml").read_bytes()
    code, _, error = here(*command(run[0], "learner.lr=1e-3", "sampler.temperature=0.9", "run.steps=4")[2:])
    assert code == 2 and "learner.lr: 0.0001 -> 0.001" in error and "sampler.temperature" in error
    assert "run.steps" not in error
    assert (run[0] / "config.toml").read_bytes() == before


def test_help_lists_every_key(here):
    _, text, _ = here("--help")
    for key in ("model.path", "data.prompts_per_step", "sampler.group_size  (int >= 2; default 8)", "dra.sharpen",
                "learner.clip_high", "eval.label", "run.save_every"):
        assert key in text


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.toml")), ids=lambda path: path.stem)
def test_recipes_load(path):
    load(evaluation.Config if path.stem.startswith("eval_") else Config, path)


@pytest.mark.parametrize(("baseline", "dra"), [("grpo", "dra_grpo"), ("dr_grpo", "dra_dr_grpo"), ("tiny_grpo", "tiny"),
                                               ("tiny_dr_grpo", "tiny_dra_dr_grpo"), ("chain_grpo", "chain"),
                                               ("chain_dr_grpo", "chain_dra_dr_grpo"),
                                               ("smollm2_grpo", "smollm2_dra_grpo"),
                                               ("smollm2_dr_grpo", "smollm2_dra_dr_grpo")])
def test_a_baseline_differs_from_its_twin_in_one_line(baseline, dra):
    lines = [Path(f"configs/{name}.toml").read_text().splitlines() for name in (baseline, dra)]
    assert [(a, b) for a, b in zip(*lines, strict=True) if a != b] == [("enabled = false", "enabled = true")]
