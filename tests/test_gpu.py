"""The CUDA branches of sampler, learner and run on the stand-in against a CPU's; and the stand-in itself.

Mostly in float64, where both draw the same tokens: on a GPU norms, masks and numbers of rows are computed another way.
"""
import json
import weakref
from contextlib import nullcontext
from functools import cache
from pathlib import Path

import pytest
import torch
from conftest import ragged_prompts, random_model
from stand_in import GPU, Gpu
from test_learner import TINY, values
from test_model import padded_logprobs, ragged_groups, with_gradients
from updates import rows_for

from dra_grpo import main
from learner import Learner, LearnerConfig
from model import Block, ModelConfig, Transformer
from ranks import start_ranks
from sampler import Completion, Sampler, SamplerConfig, Slots
from stream import PaddedAttention, Stream, VarlenAttention

STOPS = (7, 9, 11)                                      # rows end after about 40 tokens


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A small random policy with heads that the ragged kernel takes."""
    folder = tmp_path_factory.mktemp("gpu")
    random_model("qwen2", folder, head_dim=16, num_hidden_layers=2, max_position_embeddings=8192)
    return folder


@pytest.fixture
def ragged(monkeypatch) -> None:
    """Attention takes the ragged kernel in float64 too, which that of `Gpu(half_only=False)` allows."""
    for module in ("sampler", "stream"):
        monkeypatch.setattr(f"{module}.has_varlen", lambda x: x.is_cuda)


def sampler_on(device, folder, *, new=66, slots=0, stops=STOPS, dtype=torch.float64) -> Sampler:
    config = SamplerConfig(max_new_tokens=new, slots=slots)
    return Sampler(Transformer.from_pretrained(folder, dtype, device), config, stops)


def flat(groups: list[list[Completion]]) -> list[Completion]:
    return [completion for group in groups for completion in group]


def assert_same(got: list[list[Completion]], expected: list[list[Completion]]) -> None:
    """Every token and finish reason; log-probs, which are kept in float32, but for their rounding."""
    assert [(row.tokens, row.finish) for row in flat(got)] == [(row.tokens, row.finish) for row in flat(expected)]
    for a, b in zip(flat(got), flat(expected)):
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-6)


# ------------------------------------------------------------------------------------------------ the sampler

SHAPES = {                                              # lengths of the prompts, new tokens, slots, ids that stop
    "the cache is full with the last token": ((62, 40, 50), 66, 0, (7,)),
    "refill by eighths, rows move": ((62, 20, 62), 66, 4, STOPS),
    "a waiting prompt longer than all before": ((10, 20, 150), 80, 4, STOPS),
    "growth past 64, 128 and 256": ((60, 5, 126), 140, 5, (7,)),
    "every row ends at once": ((3, 5, 1), 20, 0, range(131)),
}


@cache
def on_cpu(folder: Path, shape: str) -> list[list[Completion]]:
    lengths, new, slots, stops = SHAPES[shape]
    return sampler_on("cpu", folder, new=new, slots=slots, stops=stops).generate(ragged_prompts(131, lengths), 3, (0,))


@pytest.mark.parametrize("kernel", ["bias", "ragged"])
@pytest.mark.parametrize("shape", SHAPES)
def test_rows_on_a_gpu_equal_a_cpus(shape, kernel, folder, request, monkeypatch):
    """Admit, decode, leave, refill, other buckets and a growing cache, through graphs and a host that looks late."""
    monkeypatch.setattr("sampler.FIRST_COLUMNS", 1)     # so that 270 tokens see the cache grow
    if kernel == "ragged":
        request.getfixturevalue("ragged")
    lengths, new, slots, stops = SHAPES[shape]
    prompts = ragged_prompts(131, lengths)
    with Gpu(half_only=False) as gpu:
        sampler = sampler_on(gpu.device, folder, new=new, slots=slots, stops=stops)
        waits = gpu.waits
        got = sampler.generate(prompts, 3, (0,))
    assert_same(got, on_cpu(folder, shape))
    assert gpu.replays > gpu.captures and not gpu.stale
    assert gpu.waits - waits < gpu.replays, "the host waits when it looks, every 8 steps, and not at every token"


def test_graphs_serve_later_calls_and_new_weights(folder, tmp_path, ragged):
    """Later calls capture nothing, with weights loaded in between too: graphs go on reading the same memory."""
    random_model("qwen2", tmp_path, seed=1, head_dim=16, num_hidden_layers=2, max_position_embeddings=8192)
    prompts, long = ragged_prompts(131, (30, 10, 20)), ragged_prompts(131, (350,))
    first, second = (sampler_on("cpu", path, new=20, stops=()) for path in (folder, tmp_path))
    with Gpu(half_only=False) as gpu:
        sampler = sampler_on(gpu.device, folder, new=20, stops=())
        assert_same(sampler.generate(prompts, 2, (0,)), first.generate(prompts, 2, (0,)))
        assert_same(sampler.generate(prompts[::-1], 2, (1,)), first.generate(prompts[::-1], 2, (1,)))
        sampler.load_weights((name, p.to(gpu.device)) for name, p in second.model.named_parameters())
        assert_same(sampler.generate(prompts, 2, (2,)), second.generate(prompts, 2, (2,)))
        assert gpu.captures == 1, "all six rows run to the end, in one bucket"
        assert_same(sampler.generate(long, 6, (3,)), second.generate(long, 6, (3,)))
        assert gpu.captures == 2, "the cache has moved"
    assert not gpu.stale


def test_the_cache_grows_in_doublings_up_to_what_can_occur(folder, monkeypatch):
    """And not in the steps between the last row's end and the host's next look, here 6: 62 + 194 tokens are 4 x 64."""
    monkeypatch.setattr("sampler.FIRST_COLUMNS", 1)
    resize, sizes = Slots.resize, []
    monkeypatch.setattr(Slots, "resize", lambda *args: (sizes.append(args[-1]), resize(*args)))
    with Gpu() as gpu:
        sampler_on(gpu.device, folder, new=194, stops=()).generate(ragged_prompts(131, (62,)), 2, (0,))
    assert sizes == [64, 128, 256] and gpu.captures == 3


def test_graphs_share_one_pool(folder):
    """A pool of its own for each bucket would keep that bucket's logits."""
    with Gpu() as gpu:
        sampler_on(gpu.device, folder, new=40, slots=16, stops=range(20)).generate(ragged_prompts(131, (5, 9)), 8, (0,))
    assert gpu.captures >= 3 and len(gpu.pools) == 1


def test_an_evaluation_beside_training_finds_the_memory_released(folder):
    """Two samplers over one policy: what the first released is the second's, and the next step captures anew."""
    prompts = ragged_prompts(131, (40, 30))
    expected = sampler_on("cpu", folder).generate(prompts, 3, (0,))
    with Gpu() as gpu:
        training = sampler_on(gpu.device, folder)
        evaluation = Sampler(training.model, training.config, STOPS, section="eval")
        weights = gpu.allocated
        for sampler in (training, evaluation, training):
            captures = gpu.captures
            assert_same(sampler.generate(prompts, 3, (0,)), expected)
            assert gpu.allocated > weights and gpu.captures > captures
            sampler.release()
            assert gpu.allocated == weights
    assert not gpu.stale


def test_long_limits_cost_no_memory_before_rows_are_long(folder):
    """16 rows that may have 4,096 tokens and end after a few, on a GPU with a quarter of what their limit needs."""
    prompts = ragged_prompts(131, (8,) * 4)
    expected = sampler_on("cpu", folder, new=4096, stops=range(60)).generate(prompts, 4, (0,))
    at_longest = 16 * 4104 * sampler_on("cpu", folder).bytes_per_token()
    with Gpu(at_longest / 4 / 1e9) as gpu:
        assert_same(sampler_on(gpu.device, folder, new=4096, stops=range(60)).generate(prompts, 4, (0,)), expected)
    assert gpu.peak < at_longest / 8


@pytest.mark.parametrize("new, share, fit", [(58, 0.45, 6), (120, 0.8, 8)])
def test_little_memory_lowers_the_slots_and_changes_no_token(new, share, fit, folder, capsys, monkeypatch):
    """From the start where half-full rows would not fit; later where whole ones do not, and some start again."""
    monkeypatch.setattr("sampler.FIRST_COLUMNS", 1)
    prompts = ragged_prompts(131, (3, 5))
    cpu = sampler_on("cpu", folder, new=new, stops=())
    weights, slots = sum(p.nbytes for p in cpu.model.parameters()), 8 * (new + 5) * cpu.bytes_per_token()
    with Gpu((weights + share * slots) / 1e9) as gpu:
        sampler = sampler_on(gpu.device, folder, new=new, stops=())
        assert sampler.fitting(8, new + 5) == fit
        assert_same(sampler.generate(prompts, 4, (0,)), cpu.generate(prompts, 4, (0,)))
    assert "sampler.slots: the GPU has memory for 4 rows" in capsys.readouterr().err and not gpu.stale


def test_a_gpu_without_room_for_one_row_is_refused(folder):
    """Before anything is allocated, naming the keys."""
    with Gpu(1e-3) as gpu:
        sampler = sampler_on(gpu.device, folder, new=4096)
        allocated = gpu.allocated
        with pytest.raises(ValueError, match="sampler.max_new_tokens.*sampler.slots"):
            sampler.generate([[8, 9]], 4, (0,))
        assert gpu.allocated == allocated


def test_prompts_are_prefilled_in_passes_under_a_cap(folder, monkeypatch):
    """Of at most so many padded tokens, or of one prompt; tokens are the same."""
    prompts = ragged_prompts(131, (40, 3, 17, 20, 9, 30))
    expected = sampler_on("cpu", folder, new=5).generate(prompts, 2, (0,))
    hidden, passes = Transformer.hidden, []
    monkeypatch.setattr("model.Transformer.hidden", lambda self, tokens, *args, **kwargs: (
        passes.append(tuple(tokens.shape)), hidden(self, tokens, *args, **kwargs))[1])
    monkeypatch.setattr("sampler.PREFILL_TOKENS", 40)
    with Gpu() as gpu:
        assert_same(sampler_on(gpu.device, folder, new=5).generate(prompts, 2, (0,)), expected)
    prefills = [(rows, width) for rows, width in passes if width > 1]
    assert sum(rows for rows, _ in prefills) == len(prompts) and len(prefills) < len(prompts)
    assert all(rows * width <= 40 for rows, width in prefills)


@pytest.mark.parametrize("where", ["ragged kernel", "head size 12", "capability 7.5"])
def test_bfloat16_on_a_gpu_is_close_to_the_models_own(where, folder, qwen2):
    """Log-probs of what was sampled against the model's over whole rows; the ragged kernel only where it can be."""
    folder = qwen2[1] if where == "head size 12" else folder
    prompts = ragged_prompts(131, (62, 20, 5))
    with Gpu(capability=(7, 5) if where == "capability 7.5" else (9, 0)) as gpu:
        sampler = sampler_on(gpu.device, folder, dtype=torch.bfloat16, new=24, slots=4)
        groups = sampler.generate(prompts, 3, (0,))
    assert gpu.replays and sampler.slots.varlen == (where == "ragged kernel")
    model = Transformer.from_pretrained(folder)
    for prompt, row in ((prompt, row) for prompt, group in zip(prompts, groups) for row in group):
        tokens_1T = torch.tensor([prompt + row.tokens])
        mask_1T = torch.arange(tokens_1T.shape[1])[None] >= len(prompt)
        logp_T = model.token_logprobs(tokens_1T, mask_1T, 1.0)[0][0, len(prompt) :]
        assert (logp_T - torch.tensor(row.logprobs)).abs().mean() < 0.1


def test_a_layer_of_a_decode_step_costs_few_kernels(folder, tmp_path, ragged):
    """What is the same in every layer is made once a step; with few rows the number of kernels is what a step costs."""
    random_model("qwen2", tmp_path, head_dim=16, num_hidden_layers=3)
    kernels = []
    for path in (folder, tmp_path):
        with Gpu(half_only=False) as gpu:
            sampler_on(gpu.device, path, new=4).generate([[8, 9]], 2, (0,))
        kernels.append(gpu.kernels)
    assert kernels[1] - kernels[0] <= 17


def test_a_step_is_compiled_once_for_all_layers(folder, monkeypatch, ragged):
    """Prompts go another way; the weights that the compiled functions read are those of each layer."""
    monkeypatch.setattr("model.find_spec", lambda name: name == "triton")
    monkeypatch.setattr("model.FUSE_FROM", 0)
    compiled = []

    def compile_(function, dynamic):
        assert dynamic, "one for every number of rows"
        compiled.append(calls := [])
        return lambda *arguments: (calls.append(arguments[1].shape[:2]), function(*arguments))[1]

    monkeypatch.setattr(torch, "compile", compile_)
    lengths, new, slots, stops = SHAPES[shape := "refill by eighths, rows move"]
    with Gpu(half_only=False) as gpu:
        got = sampler_on(gpu.device, folder, new=new, slots=slots, stops=stops).generate(ragged_prompts(131, lengths),
                                                                                         3, (0,))
    assert_same(got, on_cpu(folder, shape))
    assert len(compiled) == 2 and len(compiled[0]) == len(compiled[1]) > 2 and all(T == 1 for _, T in compiled[0])
    assert len(compiled[0]) == 2 + 2 * 2 * gpu.captures, "two layers, once before a capture and once in it"


def test_where_nothing_can_be_compiled_a_step_runs_as_it_is(folder, monkeypatch, capsys, ragged):
    monkeypatch.setattr("model.find_spec", lambda name: True)
    monkeypatch.setattr("model.FUSE_FROM", 0)

    def compile_(function, dynamic):
        def call(*arguments):
            raise RuntimeError("Failed to find C compiler.\nMore lines.")
        return call

    monkeypatch.setattr(torch, "compile", compile_)
    with Gpu(half_only=False) as gpu:
        sampler_on(gpu.device, folder, new=4).generate([[8, 9]], 2, (0,))
    assert "more kernels: Failed to find C compiler.\n" in capsys.readouterr().err


def test_dynamo_takes_a_block(folder):
    """Without a break, and one graph serves all layers and all numbers of rows but one."""
    model = Transformer.from_pretrained(folder, torch.float32)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    before, after = (torch.compile(function, dynamic=True, fullgraph=True, backend=backend)
                     for function in (Block.before, Block.after))
    for n in (2, 5, 48, 1):
        tokens = torch.arange(n)[:, None]
        with torch.inference_mode():
            expected = model.hidden(tokens, tokens)
            for block in model.blocks:
                block.fused = before, after
            torch.testing.assert_close(model.hidden(tokens, tokens), expected)
            for block in model.blocks:
                block.fused = None
    assert len(graphs) == 4


# ------------------------------------------------------------------------------------------------ the learner


def learner_on(device, weights_from=None, checkpointing: bool = False) -> Learner:
    return Learner(ModelConfig(TINY, "float64", checkpointing), LearnerConfig(kl_beta=0.1), TINY, torch.device(device),
                   297, 1.0, 32, weights_from)


def rows(seed: int) -> list[tuple[list[int], Completion, float]]:
    return [row for group in rows_for(seed, 3, 3) for row in group]


@pytest.mark.parametrize("kernel", ["padded", "ragged"])
def test_a_stream_on_a_gpu_equals_padded_rows_on_a_cpu(kernel, folder, request):
    """Log-probs and all gradients: completions see the prompt and their own past, and nothing of each other."""
    if kernel == "ragged":
        request.getfixturevalue("ragged")
    model, groups = Transformer.from_pretrained(folder, torch.float64), ragged_groups(0)
    expected = with_gradients(model, padded_logprobs(model, groups, 0.7))
    with Gpu(half_only=False) as gpu:
        model = Transformer.from_pretrained(folder, torch.float64, gpu.device)
        got = with_gradients(model, model.stream_logprobs(stream := Stream(groups, gpu.device), 0.7))
        assert type(stream.attention) is {"padded": PaddedAttention, "ragged": VarlenAttention}[kernel]
        got = [x.cpu() for x in got]
    assert all((a - b).norm() <= 1e-12 * b.norm() for a, b in zip(got, expected, strict=True))


def test_a_learner_in_bfloat16_on_a_gpu_is_close_to_float32_on_a_cpu():
    """Through the ragged kernel; master weights and moments stay in float32, an update without rows is one of 0."""
    figures = []
    for device, dtype in (("cpu", "float32"), (GPU, "bfloat16")):
        with Gpu() if device == GPU else nullcontext():
            learner = Learner(ModelConfig(TINY, dtype), LearnerConfig(), TINY, torch.device(device), 297, 1.0, 32)
            figures.append(values(learner.update(rows(0), lr=1e-4)))
            assert {x.dtype for x in (*learner.policy.parameters(), *learner.optimizer_state().values())} == {
                torch.float32}
            assert learner.update([], lr=1e-4)["grad_norm"] == 0
    assert figures[1]["gap"] == pytest.approx(figures[0]["gap"], rel=0.05)
    assert figures[1]["grad_norm"] == pytest.approx(figures[0]["grad_norm"], rel=0.05)
    assert figures[1] != figures[0], "in another precision"


@pytest.mark.parametrize("kernel", ["padded", "ragged"])
def test_a_learner_on_a_gpu_resumes_bit_equal_and_follows_a_cpus(kernel, tmp_path, request):
    """The fused optimizer reads a restored step count where its parameter is; with recomputation, too."""
    if kernel == "ragged":
        request.getfixturevalue("ragged")
    cpu = learner_on("cpu")
    expected = [values(cpu.update(rows(seed), lr=1e-4)) for seed in range(2)]
    with Gpu(half_only=False) as gpu:
        learner = learner_on(gpu.device, checkpointing=True)
        got = [values(learner.update(rows(0), lr=1e-4))]
        learner.save_policy(tmp_path)
        again, saved = learner_on(gpu.device, tmp_path), learner.optimizer_state()
        for name, tensor in again.optimizer_state().items():
            tensor.copy_(saved[name].cpu())
        again.set_updates(learner.updates)
        got.append(values(again.update(rows(1), lr=1e-4)))
        assert got[1] == values(learner.update(rows(1), lr=1e-4))
        assert all(torch.equal(a, b) for a, b in zip(learner.policy.parameters(), again.policy.parameters()))
    for a, b in zip(got, expected):
        assert a == pytest.approx(b, rel=1e-9)


def test_a_rank_takes_its_gpu_and_not_cudnns_attention():
    """cuDNN builds a plan for every new shape, and micro-batches have new shapes in every step."""
    torch.backends.cuda.enable_cudnn_sdp(True)          # as torch has it
    with Gpu() as gpu:
        assert start_ranks() == (0, 1, gpu.device)
    assert not torch.backends.cuda.cudnn_sdp_enabled()


@pytest.mark.exact
def test_a_run_on_a_gpu_follows_a_cpus_and_resumes(tmp_path, monkeypatch):
    """The whole command: evaluations before and after, a step, and a second one by another call; never two caches."""
    monkeypatch.setattr("signal.signal", lambda *_: None)
    few = tmp_path / "few.jsonl"
    few.write_text("".join(Path("tiny/test.jsonl").read_text().splitlines(keepends=True)[:2]))
    alive, most, make = weakref.WeakSet(), [], Slots.__init__

    def watched(self, *args):
        make(self, *args)
        alive.add(self)
        most.append(len(alive))

    def run(name: str, steps: int) -> list[dict]:
        arguments = ["--config", "configs/tiny.toml", f"run.dir={tmp_path / name}", f"run.steps={steps}",
                     "data.prompts_per_step=2", "sampler.group_size=4", "sampler.max_new_tokens=16",
                     f'eval.benchmarks=["{few}"]', "eval.samples=2", "eval.max_new_tokens=16",
                     "learner.warmup=0", "learner.schedule='constant'"]
        monkeypatch.setattr("sys.argv", ["dra_grpo.py", *arguments])
        assert main(arguments) == 0
        records = map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
        return [record for record in records if record["kind"] != "run"]

    expected = run("cpu", 2)
    monkeypatch.setattr(Slots, "__init__", watched)
    with Gpu() as gpu:
        run("gpu", 1)
        got = run("gpu", 2)
    assert not gpu.stale and max(most) == 1
    got = [record for record in got if (record["kind"], record["step"]) != ("eval", 1)]     # the end of the first call
    for a, b in zip(got, expected, strict=True):
        figures = {key for key, value in b.items() if isinstance(value, (int, float)) and not key.endswith("_s")}
        figures -= {"seconds", "peak_gb", "gap", "gap_max"}     # gaps are rounding alone
        assert {key: a[key] for key in figures} == pytest.approx({key: b[key] for key in figures}, rel=1e-3, abs=1e-6)
        assert {"loss", "reward", "kl"} < figures or "accuracy" in figures


# ------------------------------------------------------------------------------------------------ the stand-in

FORBIDDEN = {                                           # in a capture, of a matrix x, indices i and a flag on the GPU
    "a number through an index": lambda x, i: x.__setitem__((i, i), 0.0),
    "a list as an index": lambda x, i: x[:, [0, 1]],
    "a tensor from numbers": lambda x, i: torch.tensor(0.0, device=x.device),
    "a tensor from the host": lambda x, i: x.copy_(torch.ones(3, 3)),
    "to the device": lambda x, i: torch.ones(3).to(x.device),
    "a host tensor in a sum": lambda x, i: x + torch.ones(3),
    "item": lambda x, i: x[0, 0].item(),
    "tolist": lambda x, i: x.tolist(),
    "cpu": lambda x, i: x.cpu(),
    "if": lambda x, i: 1 if x.sum() > 0 else 0,
    "nonzero": lambda x, i: x.nonzero(),
    "a mask as an index": lambda x, i: x[x > 0],
    "synchronize": lambda x, i: torch.cuda.synchronize(),
}


@pytest.mark.parametrize("inference", [True, False])
@pytest.mark.parametrize("what", FORBIDDEN)
def test_a_capture_refuses_what_cuda_refuses(what, inference):
    """The first and the last of a number are what stopped every run on an H200."""
    with Gpu() as gpu, torch.inference_mode(inference):
        x, i = torch.ones(3, 3, device="cuda"), torch.arange(2, device="cuda")
        with pytest.raises(RuntimeError, match="captur|same device"), torch.cuda.graph(torch.cuda.CUDAGraph()):
            FORBIDDEN[what](x, i)
        waits = gpu.waits
        if what != "a host tensor in a sum":
            FORBIDDEN[what](x, i)                       # allowed elsewhere, where some of them wait
        assert (gpu.waits > waits) == (list(FORBIDDEN).index(what) > 5)


def test_a_replay_does_the_same_on_the_same_memory():
    """A capture changes nothing; new contents are seen, new memory is not, and memory given back is reported."""
    with Gpu() as gpu, torch.inference_mode():
        x, i, zero = torch.ones(3, device="cuda"), torch.tensor([1], device="cuda"), torch.zeros((), device="cuda")
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            x.mul_(2).index_put_((i,), zero)
            y = x + torch.arange(3, device="cuda")
        assert x.tolist() == [1, 1, 1] and gpu.kernels == 4
        for expected in ([2, 0, 2], [4, 0, 4]):
            graph.replay()
            assert x.tolist() == expected and y.tolist() == [expected[0], 1, expected[2] + 2]
        x.fill_(5)
        graph.replay()
        assert x.tolist() == [10, 0, 10] and not gpu.stale
        x = torch.ones(3, device="cuda")
        graph.replay()
        assert x.tolist() == [1, 1, 1] and len(gpu.stale) == 1


def test_tensors_have_a_place():
    """What makes a tensor on the GPU, what brings it back, and what takes tensors of both places."""
    with Gpu() as gpu:
        host, x, i = torch.ones(3), torch.ones(3, device="cuda"), torch.arange(3, device="cuda")
        moved = (host.to("cuda"), host.to(GPU), torch.tensor([1.0], device="cuda"), x.to(torch.float64), x[1:],
                 torch.zeros_like(x), x * 2, x + torch.tensor(1.0), torch.nn.Linear(3, 3).to("cuda").weight)
        assert all(y.is_cuda and y.device == GPU == gpu.device for y in moved)
        assert not any(y.is_cuda for y in (host, x.cpu(), x.to("cpu"), x.to("cpu", torch.float64), x.to(device="cpu")))
        for mixed in (lambda: x + host, lambda: host.mul_(x), lambda: torch.where(x > 0, x, host), lambda: host[i]):
            with pytest.raises(RuntimeError, match="same device"):
                mixed()
        with pytest.raises(RuntimeError, match="numpy"):
            x.numpy()
        optimizer = torch.optim.AdamW([weight := torch.nn.Parameter(x)], fused=True)
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        optimizer.state[weight]["step"] = torch.tensor(1.0)
        with pytest.raises(RuntimeError, match="same device"):
            optimizer.step()


def test_memory_ends():
    """Views cost nothing, what is dropped is given back, and the limit raises what torch raises."""
    with Gpu(gb=1e-6) as gpu:
        x = torch.zeros(100, device="cuda")
        y = x[10:].view(3, 30)
        assert gpu.allocated == 400 and torch.empty(100, device="cuda").isnan().all()
        with pytest.raises(torch.OutOfMemoryError, match="400 of 1,000"):
            torch.zeros(200, device="cuda")
        assert torch.cuda.mem_get_info() == (600, 1000) and gpu.peak == 901
        del x, y
        assert gpu.allocated == 0


@pytest.mark.parametrize("wrong, message", [
    (dict(), None), (dict(used=[3, 9]), "drop the rest"), (dict(used=[3, 5]), "uses 5 of 4..8"),
    (dict(integer=torch.int64), "int32"), (dict(size=12), "multiple of 8"),
    (dict(dtype=torch.float32), "fp16 and bf16"),
])
def test_ragged_attention_refuses_what_torch_2_11_does(wrong, message):
    """And more than `max_k` keys, which the kernel drops without a word; else it attends to each row's first keys."""
    torch.manual_seed(0)
    with Gpu() as gpu:
        size, dtype = wrong.get("size", 16), wrong.get("dtype", torch.bfloat16)
        q, k, v = (torch.randn(n, heads, size, dtype=dtype, device="cuda") for n, heads in ((2, 4), (8, 2), (8, 2)))
        k[3], v[3] = float("nan"), float("nan")         # beyond the first row's three
        rows, starts, used = (torch.tensor(x, dtype=wrong.get("integer", torch.int32), device="cuda")
                              for x in ([0, 1, 2], [0, 4, 8], wrong.get("used", [3, 4])))
        with pytest.raises(RuntimeError, match=message) if message else nullcontext():
            arguments = q, k, v, rows, starts, 1, 8, 0.0, False, False
            out = torch.ops.aten._flash_attention_forward(*arguments, seqused_k=used)[0]
            for row, keys in enumerate((slice(0, 3), slice(4, 8))):
                weights = (q[row].view(2, 2, size).float() @ k[keys].float().permute(1, 2, 0) / 4).softmax(-1)
                expected = (weights @ v[keys].float().transpose(0, 1)).view(4, size)
                assert torch.allclose(out[row].float(), expected, atol=2e-2)
    assert gpu.allocated


