"""plan/: estimates against what an H200 took, --dry-run of both commands, and what stops a run in its first seconds."""
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT

import checkpoint
import dra_grpo
import eval as evaluation
from config import load
from model import Transformer
from plan import preflight, speed
from plan.fit import fits, rows_at_a_time, to_fit, tokens_left
from plan.gpus import GPUS, named, of_this_machine
from plan.memory import UPDATE, Work, parts, peaks
from plan.preflight import Findings, on_meta
from ranks import run_main
from stand_in import Gpu

H200 = json.loads((ROOT / "tests/h200.json").read_text(encoding="utf-8"))
GEOMETRY = H200["policy"]
BIG = ["--config", "configs/dra_grpo.toml", f"model.path={GEOMETRY}"]
GB = 10**9


@pytest.fixture(scope="module")
def policy() -> Transformer:
    return on_meta(ROOT / GEOMETRY)


def work(**settings) -> Work:
    """Of the paper's shape on one GPU."""
    return Work(**dict(prompts=8, group_size=6, prompt_tokens=512, max_new_tokens=3584, dtype=torch.bfloat16,
                       reference=True, checkpointing=True) | settings)


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs a command's main in this process, with these arguments; returns (exit code, stdout, stderr)."""
    def call(module, *arguments):
        monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *arguments])
        with pytest.raises(SystemExit) as exit_:
            run_main(module.main)
        return exit_.value.code, *capsys.readouterr()
    return call


# ------------------------------------------------------------------------------------------------ against the H200


def compared(policy: Transformer) -> list[tuple[str, float, float, str]]:
    """(what, measured, estimate, unit) of every figure in h200.json.

    The learner was alone on the GPU, so nothing of the sampler was in its peak, and no embedder in either.
    """
    rows = []
    for case in H200["decode"]:
        start, end = case["context"]
        lengths = speed.Lengths(start, end - start, end - start)
        steps, _, s = speed.decoding(policy, torch.bfloat16, GPUS["h200"], case["rows"], case["rows"], lengths)
        rows.append((f"decode step, {case['rows']} rows, {case['with']}", case["measured_ms"], 1e3 * s / steps, "ms"))
    for case in H200["steps"]:
        names = ("prompts", "group_size", "checkpointing", "offload", "micro_batch_tokens")
        done = work(prompt_tokens=case["prompt"], max_new_tokens=case["cap"],
                    **{name: case[name] for name in names if name in case})
        times = speed.step_times(policy, done, GPUS["h200"], speed.Lengths(case["prompt"], case["mean"], case["cap"]))
        found = parts(policy, done)
        sampler = [part for part in found if part.name.startswith(("sampler", "cache", "graphs", "pass over"))]
        sums = peaks([part for part in found if part not in sampler])
        for key, estimate, unit in (("rollout_s", times.rollout_s, "s"), ("update_s", times.update_s, "s"),
                                    ("rollout_gb", sum(part.gpu for part in sampler) / GB, "GB"),
                                    ("update_gb", max(sums[phase] for phase in UPDATE) / GB, "GB")):
            if (measured := case.get(f"measured_{key}")) is not None:
                rows.append((f"{key.partition('_')[0]}, {case['with']}", measured, estimate, unit))
    return rows


def test_estimates_are_within_a_quarter_of_what_an_h200_took(policy):
    rows = compared(policy)
    assert len(rows) == 18
    assert [row for row in rows if not 0.75 <= row[2] / row[1] <= 1.25] == []


def test_results_have_these_estimates(policy):
    """The table of benchmarks/RESULTS.md, line by line."""
    text = (ROOT / "benchmarks/RESULTS.md").read_text(encoding="utf-8")
    lines = [f"| {what} | **{measured:.3g} {unit}** | ~{estimate:.3g} {unit} | {estimate / measured:.2f} |"
             for what, measured, estimate, unit in compared(policy)]
    assert [line for line in lines if line not in text] == [], "put these into the table"


def test_flops_of_an_update_by_hand():
    """Two, for each weight and token, forward; the backward pass has twice as many, recomputing as many again; the head
    reads completions only and is always computed twice; a query sees half of the completion and the prompt."""
    g = SimpleNamespace(layers=1, heads=2, kv_heads=1, head_dim=4, vocab=10, hidden=8)
    weight = torch.empty(8, 30, device="meta")
    model = SimpleNamespace(g=g, named_parameters=lambda: [("blocks.0.w", weight), ("embed.weight", weight)],
                            parameters=lambda: [weight, weight])
    lengths = speed.Lengths(prompt=10, mean=20, cap=20)
    keys = 2 * (10 * 20 + 20 * 20 / 2)
    tokens, blocks, head, attention = 10 + 2 * 20, 2 * 240, 2 * 80, 4 * 2 * 4

    def flops(**settings) -> float:
        return speed.step_times(model, work(prompts=1, group_size=2, **settings), GPUS["h100"], lengths).update_flops

    plain = tokens * blocks * 3 + 40 * head * 4 + keys * attention * 3.5
    assert flops(reference=False, checkpointing=False) == plain
    assert flops(reference=False) - plain == tokens * blocks + keys * attention
    assert flops(checkpointing=False) - plain == tokens * blocks + 40 * head + keys * attention
    twice = flops(reference=False, checkpointing=False, updates=2)
    assert twice == 2 * plain, "old log-probs are those of the first update"


def test_times_follow_the_gpu_and_the_work(policy):
    """More bandwidth, FLOP/s or ranks: less time; longer completions and a reference: more."""
    lengths = speed.Lengths(200, 2400, 3584)

    def times(gpu=GPUS["h100"], mean=2400, **settings) -> speed.Times:
        return speed.step_times(policy, work(**settings), gpu, replace(lengths, mean=mean))

    base = times()
    assert times(GPUS["h200"]).rollout_s < base.rollout_s and times(GPUS["h200"]).update_s <= base.update_s
    assert times(mean=1200).rollout_s < base.rollout_s and times(mean=1200).update_s < 0.6 * base.update_s
    assert times(reference=False).update_s < base.update_s and times(checkpointing=False).update_s < base.update_s
    four = times(prompts=2, world=4)
    assert four.update_s == pytest.approx(base.update_s / 4, rel=0.02) and four.rollout_s < base.rollout_s
    assert times(slots=8).rollout_s > 2 * base.rollout_s, "fewer rows at a time are more steps"
    assert times(offload=True).update_s > 2 * base.update_s
    assert times(offload=True, micro_batch_tokens=65536).update_s < times(offload=True).update_s
    assert times(GPUS["t4"]).step_s == 0, "no bfloat16, no estimate"


def test_slots_turn_over_until_nobody_waits(policy):
    """All at once: as many steps as the longest row. Twelve rows in four slots: three times as many as a row has on
    average, and then what the longest has more."""
    lengths = speed.Lengths(10, 100, 300)
    assert speed.decoding(policy, torch.bfloat16, GPUS["h100"], 12, 12, lengths)[0] == 300
    assert speed.decoding(policy, torch.bfloat16, GPUS["h100"], 12, 4, lengths)[0] == 3 * 100 + 200


def test_gpus_are_known_by_what_torch_calls_them(monkeypatch):
    """As drivers report them; of two with one name the memory decides, and an unknown one has no speed."""
    for name, memory, key in (("NVIDIA H100 80GB HBM3", 85.0, "h100"), ("NVIDIA H100 PCIe", 85.0, "h100-pcie"),
                              ("NVIDIA A100-SXM4-40GB", 42.4, "a100-40"), ("NVIDIA A100-SXM4-80GB", 85.0, "a100-80"),
                              ("NVIDIA GeForce RTX 4090", 25.3, "4090"), ("NVIDIA L4", 24.1, "l4"),
                              ("NVIDIA L40S", 47.7, "l40s"), ("Tesla T4", 15.8, "t4"), ("NVIDIA A10G", 24.1, "a10g")):
        properties = SimpleNamespace(name=name, total_memory=int(memory * GB))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
        found = of_this_machine(torch.device("cuda"))
        assert (found.bandwidth, found.bf16) == (GPUS[key].bandwidth, GPUS[key].bf16), name
        assert (found.name, found.memory) == (name, properties.total_memory)
    properties = SimpleNamespace(name="NVIDIA L400", total_memory=1)
    assert of_this_machine(torch.device("cuda")).bandwidth == 0
    with pytest.raises(ValueError, match="--gpu 'h1000' is not known; known: b200, h200, h100"):
        named("h1000")


# ------------------------------------------------------------------------------------------------ what would fit


def test_what_fits_is_found_by_trying(policy):
    """Every remedy alone that suffices is said with the mildest value that does, and is enough when it is followed."""
    whole = work(checkpointing=False)
    text = to_fit(policy, whole, 80 * GB)
    assert "model.activation_checkpointing=true (~5" in text and "learner.micro_batch_tokens=8192" in text
    assert not fits(max(peaks(parts(policy, whole)).values()), 80 * GB)
    for changed in (replace(whole, checkpointing=True), replace(whole, micro_batch_tokens=8192)):
        assert fits(max(peaks(parts(policy, changed)).values()), 80 * GB)
    text = to_fit(policy, work(), 24 * GB)
    assert "sampler.slots" not in text and "learner.offload=true" in text
    assert "4 GPUs (torchrun --nproc-per-node 4)" in text and "2 GPUs" not in text
    assert not fits(max(peaks(parts(policy, work(world=2, prompts=4))).values()), 24 * GB)
    text = to_fit(policy, work(checkpointing=False), 10.5 * GB)
    assert text.startswith("to fit, together: model.activation_checkpointing=true learner.micro_batch_tokens=4096 ")
    assert "learner.offload=true (~" in text and "host memory" in text
    assert "nothing that can be set" in to_fit(policy, work(), 3 * GB)
    assert "offload" not in to_fit(policy, work(), 24 * GB, host=20 * GB), "nor is that room in host memory"


def test_an_evaluation_decodes_as_many_rows_as_the_sampler_would(policy):
    """Sampler.fitting's own arithmetic: nine tenths of what is free, for rows half as long as they can be."""
    g = policy.g
    per_token = 2 * g.layers * g.kv_heads * g.head_dim * 2
    tokens = tokens_left(4 * GB, 24 * GB, g, torch.bfloat16)
    assert tokens == int(0.9 * 20 * GB) // per_token
    assert rows_at_a_time(tokens, 33_000) == 2 * tokens // 33_000 and rows_at_a_time(0, 33_000) == 1


def test_the_work_of_a_rank_is_that_of_the_settings(policy):
    """Prompts are divided over the ranks, the last may have fewer; "auto" recomputes nothing until it is decided."""
    config = load(dra_grpo.Config, "configs/dra_grpo.toml",
                  ["sampler.slots=5", "learner.offload=true", "learner.updates_per_rollout=3", "learner.kl_beta=0",
                   "eval.benchmarks=[\"a.jsonl\"]", "eval.max_new_tokens=9000", "learner.micro_batch_tokens=77"])
    found = preflight.training_work(config, policy, 3, True)
    assert found == replace(work(), prompts=3, world=3, slots=5, offload=True, updates=3, reference=False,
                            checkpointing=False, micro_batch_tokens=77, eval_tokens=9512, embedder=found.embedder)
    assert found.embedder[0] == 95_000_000 and preflight.training_work(
        replace(config, dra=replace(config.dra, enabled=False)), policy, 3, True).embedder == (0, 0)


def test_a_checkpoint_needs_host_memory_for_a_file_or_the_policy(policy):
    """Three times a file of moments, of 1 GB and what its last tensor has more; or the policy that the first rank
    gathers, in float32."""
    found = {part.name: part.host for part in parts(policy, work())}["a checkpoint being written"]
    total, largest = sum(p.numel() for p in policy.parameters()), max(p.numel() for p in policy.parameters())
    assert found == max(4 * total, 3 * (checkpoint.FILE_BYTES + 4 * largest)) < 8 * total


# ------------------------------------------------------------------------------------------------ --dry-run


def test_a_dry_run_of_training_says_all_and_writes_nothing(command, tmp_path):
    """The first prompt as a run prints it, the table, the peak; no run folder."""
    folder = tmp_path / "r"
    code, out, err = command(dra_grpo, "--config", "configs/tiny.toml", f"run.dir={folder}", "--dry-run")
    assert code == 0 and not err and not folder.exists()
    assert "4000 training problems" in out and 'the first prompt: "<|user|>82+57<|assistant|>"' in out
    assert "one rank, GB, estimated" in out and "master weights" in out and "time: not estimated for a CPU" in out
    assert out.endswith("nothing stands in the way\n")


def test_a_dry_run_for_another_machine_gives_time_and_cost(command):
    """The policy's config.json alone is enough, and the price is of every GPU."""
    code, out, _ = command(dra_grpo, *BIG, "--dry-run", "--gpu", "h100", "--gpus", "2", "--price", "2.5",
                           "--length", "3000", "run.steps=1000")
    assert code == 0 and "2 x H100 SXM, 80 GB" in out and ": fits" in out and "completions of 3,000 tokens" in out
    hours, cost = re.search(r"the run: 1000 steps in ~([\d.]+) h, cost ~([\d.]+) at 2.5 per GPU and hour", out).groups()
    assert float(cost) == pytest.approx(5 * float(hours), rel=0.05)
    assert "note: data.train = 'data/open-rs.jsonl' is not a file" in out, "it may be there"
    assert "nothing stands in the way" in out


def test_everything_estimated_is_marked(command):
    """A line about time, memory or cost has no figure of ours without its ~."""
    _, out, _ = command(dra_grpo, *BIG, "--dry-run", "--gpu", "h100", "--price", "2.5")
    lines = out.split("~ is estimated")[1].splitlines()[1:]
    for line in lines:
        for figure in re.findall(r"(\S*\d\S*) (?:GB|s|min|h|days|TB|TFLOP)\b(?! per)", line.split("SXM")[0]):
            assert figure.startswith("~"), line
    assert "one rank, GB, estimated" in out and speed.MEASURED_ON in out


def test_the_named_policy_needs_no_hub_to_be_planned(command):
    """Offline, as tests are: its sizes are in the repository."""
    code, out, _ = command(dra_grpo, "--config", "configs/dra_grpo.toml", "--dry-run", "--gpu", "h100")
    assert code == 0 and "14.217" in out and "the hub did not give it" in out
    code, _, err = command(dra_grpo, "--config", "configs/dra_grpo.toml", "--dry-run", "--gpu", "h100",
                           "model.path=nobody/nothing")
    assert code == 2 and "model.path = 'nobody/nothing'" in err and "hf download" in err


def test_a_dry_run_for_this_machine_lists_all_that_is_missing(command):
    """Policy, data and embedder at once, each with its key."""
    code, out, err = command(dra_grpo, "--config", "configs/dra_grpo.toml", "--dry-run")
    assert code == 2 and "things stand in the way" in err and "nothing stands" not in out
    for key in ("model.path", "data.train", "dra.embedder"):
        assert re.search(rf"^  \d\. {key} = ", err, re.M), key
    assert "master weights" in out, "the table is there all the same"


@pytest.mark.parametrize(("arguments", "words"), [
    (["--gpu", "l4"], r"L4 has 24.0 GB free, and this needs ~5.* to fit: learner.offload=true"),
    (["--gpu", "t4"], 'model.dtype = "bfloat16": Tesla T4 has none; set model.dtype = "float32"'),
    (["--gpu", "h100", "--gpus", "9"], "data.prompts_per_step = 8 is less than one prompt for each of 9 ranks"),
    (["--gpu", "nothing"], "--gpu 'nothing' is not known"),
    (["--gpu", "h100", "--price", "-1"], "--price must be a positive number; got -1.0")])
def test_a_dry_run_of_what_cannot_work_ends_with_2(arguments, words, command):
    code, _, err = command(dra_grpo, *BIG, "--dry-run", *arguments)
    assert code == 2 and re.search(words, err), err


def test_options_of_a_dry_run_want_one(command):
    code, _, err = command(dra_grpo, *BIG, "--gpu", "h100", "--price", "3")
    assert code == 2 and err == ("error: --gpu, --price belongs to --dry-run; add it, or leave --gpu and --price out\n")


def test_a_dry_run_of_an_evaluation(command, tmp_path):
    """Problems, the first prompt, memory; with a GPU named, rows at a time, time and cost; nothing is written."""
    arguments = ["--config", "configs/eval_tiny.toml", f"output.dir={tmp_path / 'o'}", "--dry-run"]
    code, out, err = command(evaluation, *arguments)
    assert code == 0 and not err and not (tmp_path / "o").exists() and "cache of keys and values" in out
    assert 'tiny/policy | the first prompt: "<|user|>' in out and "512 rows at a time" in out
    code, out, _ = command(evaluation, *arguments, "--gpu", "h100", "--price", "2", "eval.max_new_tokens=200")
    assert code == 0 and "test: 200 problems x 32, completions of 133 tokens on average: ~" in out
    assert re.search(r"the evaluation: ~[\d.]+ s, cost ~\S+ at 2 per GPU and hour", out)
    code, _, err = command(evaluation, *arguments, "eval.benchmarks=[\"nothing.jsonl\"]", "--model", "tiny/nothing")
    assert code == 2 and "1. eval.benchmarks = 'nothing.jsonl'" in err and "2. model.path = 'tiny/nothing'" in err


@pytest.mark.parametrize("path", [path for path in sorted(ROOT.glob("configs/*grpo*.toml"))
                                  if "DeepSeek" in path.read_text(encoding="utf-8")], ids=lambda path: path.stem)
def test_recipes_say_what_their_dry_run_says(path, command):
    """Estimates in the head of a recipe for a GPU; the others have been run."""
    text = path.read_text(encoding="utf-8")
    claim = re.search(r"--gpu (\S+) estimates ~([\d.]+) GB, ~([\d.]+) GB of host memory, (~.+) a step\.", text)
    gpu, peak, host, step = claim.groups()
    code, out, _ = command(dra_grpo, "--config", str(path), "--dry-run", "--gpu", gpu)
    found = re.search(r"peak: ~([\d.]+) GB \(.+\), ~([\d.]+) GB of host memory", out)
    assert code == 0 and tuple(map(float, found.groups())) == pytest.approx((float(peak), float(host)), abs=0.3)
    assert f"together {step} a step" in out, re.search("together .*", out)[0]


@pytest.mark.parametrize(("name", "keys"), [
    ("literal", {"clamp", "negative"}),
    *((size, {"offload", "micro_batch_tokens"}) for size in ("16gb", "24gb", "40gb"))])
def test_variants_of_a_recipe_add_two_lines(name, keys):
    """Below the comment at the top, and change none."""
    own, base = ({line for line in path.read_text(encoding="utf-8").split("[model]")[1].splitlines()}
                 for path in (ROOT / f"configs/dra_grpo_{name}.toml", ROOT / "configs/dra_grpo.toml"))
    assert {line.partition(" ")[0] for line in own - base} == keys and not base - own


# ------------------------------------------------------------------------------------------------ preflight


TINY = ["--config", "configs/tiny.toml", "run.steps=1", "eval.benchmarks=[]"]


@pytest.fixture
def gpu(monkeypatch):
    """Preflight sees a GPU of this name, memory and compute capability; nothing else does."""
    def see(name="NVIDIA L4", memory=24 * GB, capability=(8, 9), count=1):
        monkeypatch.setattr(preflight, "this_device", lambda: torch.device("cuda", 0))
        monkeypatch.setattr(preflight, "free_gpu", lambda _: memory)
        monkeypatch.setattr(preflight, "ragged_attention", lambda: True)
        for name_, value in (("get_device_name", name), ("get_device_capability", capability),
                             ("get_device_properties", SimpleNamespace(name=name, total_memory=memory))):
            monkeypatch.setattr(torch.cuda, name_, lambda _=None, value=value: value)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    return see


def findings_of(*overrides: str, config="configs/dra_grpo.toml", world=1) -> Findings:
    found, overrides = Findings(), [f"model.path={GEOMETRY}", "run.dir=runs/none", *overrides]
    preflight.training(load(dra_grpo.Config, config, overrides), found, world)
    return found


@pytest.fixture
def roomy(monkeypatch):
    monkeypatch.setattr(preflight, "free_host", lambda: 500 * GB)
    monkeypatch.setattr(preflight, "free_disk", lambda _: 500 * GB)


def test_a_gpu_that_is_too_small_is_said_with_the_knobs(gpu, roomy):
    gpu()
    found = findings_of()
    assert len(found.problems) == 1 and not found.warnings
    assert re.match(r"NVIDIA L4 has 24.0 GB free, and this needs ~5\d.\d GB; to fit: learner.offload=true \(~1",
                    found.problems[0])
    gpu(memory=48 * GB)
    assert "memory is tight: NVIDIA L4 has 48.0 GB free" in findings_of().warnings[0], "it may be a tenth off"
    gpu(memory=80 * GB)
    assert findings_of() == Findings()


def test_host_memory_is_looked_at_too(gpu, roomy, monkeypatch):
    """That of all ranks on the machine; offloading is where it is short."""
    gpu(memory=80 * GB)
    monkeypatch.setattr(preflight, "free_host", lambda: 30 * GB)
    found = findings_of("learner.offload=true")
    assert re.search(r"host memory has 30.0 GB free, and this needs ~38.\d GB; most of it is AdamW's", *found.problems)
    assert findings_of() == Findings()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    gpu(memory=80 * GB, count=8)
    assert "host memory has 30.0 GB free, and this needs ~" in findings_of(world=8).problems[0]


def test_half_precision_needs_a_gpu_that_has_it(gpu, roomy, monkeypatch):
    gpu("Tesla T4", 16 * GB, (7, 5))
    assert "Tesla T4 has compute capability 7.5, and bfloat16 begins with 8.0; set model.dtype = \"float32\"" in \
        findings_of("learner.offload=true").problems[0]
    assert not findings_of("learner.offload=true", "model.dtype=float32", "sampler.max_new_tokens=256",
                           "learner.micro_batch_tokens=1024").problems
    gpu(memory=80 * GB)
    monkeypatch.setattr(preflight, "ragged_attention", lambda: False)
    assert "seqused_k of aten::_flash_attention_forward" in findings_of().problems[0]
    assert not findings_of("model.dtype=float32", "sampler.max_new_tokens=256", "learner.kl_beta=0",
                           "learner.micro_batch_tokens=1024").problems, "float32 is sampled without it"


def test_a_dry_run_on_a_gpu_that_the_table_does_not_know(command):
    """The tests' stand-in: its memory is what torch says, its speed nobody's."""
    with Gpu(2):
        code, out, _ = command(dra_grpo, *TINY, "--dry-run")
    assert code == 0 and "1 x stand-in, 2 GB: fits" in out, out
    assert "the speed of stand-in is not in the table; name a GPU with --gpu" in out
    with Gpu(0.02):
        code, _, err = command(dra_grpo, *TINY, "--dry-run")
    assert code == 2 and "stand-in has 0.0 GB free, and this needs ~0.1 GB" in err


def test_ranks_without_a_gpu_and_an_old_torch_are_refused(gpu, roomy, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    gpu(memory=80 * GB, count=4)
    assert "8 ranks on this machine, and torch sees 4 GPUs here" in findings_of(world=8).problems[0]
    monkeypatch.setattr(torch, "__version__", "2.10.1+cu128")
    assert "torch 2.10.1+cu128 is too old: this needs torch >= 2.11" in findings_of(world=8).problems[0]
    monkeypatch.setattr(torch, "__version__", "2.11.0a0")
    assert "too old" not in findings_of(world=8).problems[0]


def test_this_torch_has_the_kernel_of_the_sampler():
    """Its schema has the argument that sampler.Slots.attend passes; whether it was compiled is the build's matter."""
    names = [argument.name for argument in torch.ops.aten._flash_attention_forward.default._schema.arguments]
    assert "seqused_k" in names


def test_no_gpu_is_a_warning_and_little_memory_a_problem(roomy, monkeypatch):
    """bfloat16 runs on a CPU, though nobody means it to; what does not fit in its memory does not."""
    found = findings_of("sampler.max_new_tokens=256", "learner.micro_batch_tokens=1024")
    assert not found.problems and 'model.dtype = "bfloat16" is meant for a GPU' in found.warnings[0]
    assert "built without CUDA" in found.warnings[0] or "nvidia-smi" in found.warnings[0]
    monkeypatch.setattr(preflight, "free_host", lambda: 20 * GB)
    assert "this machine has 20.0 GB free, and this needs ~" in findings_of().problems[0]
    assert findings_of(config="configs/tiny.toml") .problems, "of the 1.5B policy's sizes"
    monkeypatch.setattr(preflight, "free_host", lambda: None)
    assert not findings_of().problems, "a system that does not say how much is free"


def test_a_disk_that_is_too_small_is_told_before_the_first_step(monkeypatch, tmp_path, command):
    """Three of the tiny policy's checkpoints of 12 bytes a parameter, and the policy; what is there already counts."""
    monkeypatch.setattr(preflight, "free_disk", lambda _: 10**6)
    code, _, err = command(dra_grpo, *TINY, f"run.dir={tmp_path / 'r'}")
    assert code == 2 and re.search(r"run.dir = .*0.0 GB are free there, and the run needs 0.0 GB \(1 x 0.0 GB "
                                   r"of checkpoints, with the one being written, and the policy\); lower run.keep", err)
    total = sum(p.numel() for p in on_meta(Path("tiny/policy")).parameters())
    for there, fits_now in ((0, False), (12 * total, True)):
        folder = tmp_path / f"with-{there}/checkpoints"
        folder.mkdir(parents=True)
        (folder / "x").write_bytes(b"0" * there)
        monkeypatch.setattr(preflight, "free_disk", lambda _: 30 * total)
        found = Findings()
        preflight.disk(found, folder.parent, on_meta(Path("tiny/policy")), "float32", 3)
        assert bool(found.problems) != fits_now


def test_several_problems_are_told_together(monkeypatch, tmp_path, command):
    """Nothing is written."""
    monkeypatch.setattr(preflight, "free_disk", lambda _: 10**6)
    monkeypatch.setattr(preflight, "free_host", lambda: 10**6)
    code, _, err = command(dra_grpo, *TINY, f"run.dir={tmp_path / 'r'}")
    assert code == 2 and "2 things stand in the way" in err and "run.keep" in err and "this machine has 0.0 GB" in err
    assert not (tmp_path / "r" / "config.toml").exists()


def test_an_evaluation_without_memory_for_a_row_is_refused(monkeypatch, tmp_path, command):
    monkeypatch.setattr(preflight, "free_host", lambda: 10**8)
    code, _, err = command(evaluation, "--config", "configs/eval_tiny.toml", f"output.dir={tmp_path}")
    assert code == 2 and "this machine has 0.1 GB free, and this needs ~0.4 GB; lower eval.max_new_tokens" in err


def test_memory_of_this_machine_is_read():
    assert preflight.free_host() > GB / 10 and preflight.free_disk(Path("runs/there/is/none")) > 0


# ------------------------------------------------------------------------------------------------ "auto"


def test_auto_recomputes_only_where_memory_is_short(gpu, roomy):
    """Decided by the table, with a GB to spare."""
    config = load(dra_grpo.Config, "configs/dra_grpo.toml", [f"model.path={GEOMETRY}"])
    model = preflight.network(config.model)
    without = max(peaks(parts(model, preflight.training_work(config, model, 1, True))).values())
    assert 100 * GB < without < 110 * GB
    for memory, recomputes in ((150 * GB, False), (without + GB, False), (without + GB - 1, True), (80 * GB, True)):
        gpu(memory=memory)
        assert preflight.training(config, Findings(), 1).checkpointing is recomputes, memory


@pytest.mark.parametrize(("memory", "recomputes"), [(20 * GB, False), (int(0.65 * GB), True)])
def test_a_run_records_what_auto_came_to(memory, recomputes, monkeypatch, tmp_path, command, capsys):
    """In one line and in its settings; the same command continues it, wherever it comes to something else."""
    monkeypatch.setattr(preflight, "free_host", lambda: memory)
    arguments = [*TINY, f"run.dir={tmp_path / 'r'}", "model.activation_checkpointing=auto", "sampler.max_new_tokens=8"]
    code, out, _ = command(dra_grpo, *arguments)
    assert code == 0
    assert f'model.activation_checkpointing = "auto": {str(recomputes).lower()}, because memory is ' in out
    assert load(dra_grpo.Config, tmp_path / "r/config.toml").model.activation_checkpointing is recomputes
    monkeypatch.setattr(preflight, "free_host", lambda: 20 * GB)
    assert command(dra_grpo, *arguments, "run.steps=2")[0] == 0
