"""sampler.py: greedy against transformers' generate, log-probs against the learner's, draws that depend on the row."""
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers
from conftest import ragged_prompts, random_model

from model import Transformer
from prompts import load_tokenizer
from sampler import Rollout, Sampler, SamplerConfig, inverse_cdf, nucleus, sample_tokens

LENGTHS = [1, 9, 30, 4, 17]


@pytest.fixture(params=["plain", "packed"])
def layout(request, monkeypatch):
    """Matrices as small as the tests' are packed only on demand."""
    if request.param == "packed":
        monkeypatch.setattr("model.PACK_FROM", 0)
    return request.param


def sampler_for(folder, *, slots=0, temperature=1.0, new=24, stop=(7,), n_tokens=131):
    model = Transformer.from_pretrained(folder)
    model.n_tokens = min(model.g.vocab, n_tokens)
    return Sampler(model, SamplerConfig(max_new_tokens=new, temperature=temperature, slots=slots), stop)


def flat(groups):
    return [completion.tokens for group in groups for completion in group]


def greedy_reference(model, prompts, new):
    """transformers' generate, one prompt at a time, cut after the stop token."""
    rows = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new,
                             do_sample=False)[0, len(prompt):].tolist()
        rows.append(out[: out.index(7) + 1] if 7 in out else out)
    return rows


@pytest.mark.usefixtures("layout")
@pytest.mark.parametrize("architecture", ["qwen2", "qwen3", "llama"])
@pytest.mark.parametrize("slots", [1, 3, 0])
def test_greedy_equals_generate_on_ragged_prompts(architecture, slots, tmp_path):
    """Token for token, with rows leaving, being moved and refilled."""
    theirs = random_model(architecture, tmp_path)
    prompts = ragged_prompts(131, LENGTHS)
    got = flat(sampler_for(tmp_path, slots=slots, temperature=0.0).generate(prompts, 2, (0,)))
    expected = greedy_reference(theirs, prompts, 24)
    assert got == [row for row in expected for _ in range(2)]


def test_greedy_equals_generate_on_the_tiny_policy():
    """Trained weights, real stop token (id 0, which is also the pad token)."""
    theirs = transformers.AutoModelForCausalLM.from_pretrained("tiny/policy")
    tokenizer = load_tokenizer("tiny/policy")
    prompts = [tokenizer(f"<|user|>{a}+{b}<|assistant|>", add_special_tokens=False)["input_ids"]
               for a, b in ((47, 38), (10, 99), (61, 5))]
    got = sampler_for("tiny/policy", temperature=0.0, new=64, stop=(0,), n_tokens=len(tokenizer)).generate(
        prompts, 2, (0,))
    for prompt, group in zip(prompts, got):
        ids = torch.tensor([prompt])
        out = theirs.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=64,
                              do_sample=False)[0, len(prompt):].tolist()
        assert group[0].tokens == group[1].tokens == out
        assert group[0].finish == "stop" and out[-1] == 0 and out.count(0) == 1, "the stop token is kept, once"


@pytest.mark.usefixtures("layout")
@pytest.mark.parametrize("temperature", [0.7, 1.3])
def test_tokens_depend_on_their_row_alone(qwen2, temperature):
    """Slots, batch composition and order must not change what a (seed, position, completion) draws.

    A new seed or position must.
    """
    _, folder = qwen2
    prompts = ragged_prompts(131, LENGTHS)
    reference = sampler_for(folder, temperature=temperature).generate(prompts, 3, (5, 1))
    for slots in (1, 4):
        assert flat(sampler_for(folder, slots=slots, temperature=temperature).generate(prompts, 3, (5, 1))) == flat(
            reference)
    order = [3, 0, 4]
    part = sampler_for(folder, temperature=temperature).generate([prompts[i] for i in order], 3, (5, 1),
                                                                 positions=order)
    assert flat(part) == flat([reference[i] for i in order])
    for changed in (sampler_for(folder, temperature=temperature).generate(prompts, 3, (5, 2)),
                    sampler_for(folder, temperature=temperature).generate(prompts, 3, (5, 1),
                                                                          positions=[10, 11, 12, 13, 14])):
        assert all(a != b for a, b in zip(flat(changed), flat(reference)) if len(a) > 3)
    assert len({tuple(c.tokens) for c in reference[2]}) > 1, "completions of one prompt are different draws"


def test_each_token_is_its_own_random_number(qwen2):
    """With all weights 0 the ids are floor(u * V), u from a generator seeded with (seed, position, completion)."""
    model = Transformer.from_pretrained(qwen2[1])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    sampler = Sampler(model, SamplerConfig(max_new_tokens=20, slots=3), [])
    groups = sampler.generate([[5], [6, 7, 8], [5]], 2, (3, 1), positions=[4, 0, 2])
    expected = [[(np.random.default_rng((3, 1, position, g)).random(20) * 131).astype(int).tolist() for g in range(2)]
                for position in (4, 0, 2)]
    assert [[completion.tokens for completion in group] for group in groups] == expected


@pytest.mark.usefixtures("layout")
@pytest.mark.parametrize("name", ["tiny", "random"])
def test_logprobs_equal_teacher_forced_forward(name, qwen2):
    """fp32: mean below 1e-6 and max below 5e-5 per token, at the sampling temperature, stop token included.

    The random model's log-probs are around -7, where one unit in the last place is 5e-7: there the mean is per nat.
    """
    folder, n_tokens, stop = ("tiny/policy", 297, (0,)) if name == "tiny" else (qwen2[1], 120, (7,))
    sampler = sampler_for(folder, temperature=0.7, slots=4, n_tokens=n_tokens, stop=stop)
    prompts = ragged_prompts(n_tokens, LENGTHS)
    rows = [(prompt, c) for prompt, group in zip(prompts, sampler.generate(prompts, 4, (0,))) for c in group]
    width = max(len(prompt) + len(c.tokens) for prompt, c in rows)
    tokens = torch.tensor([prompt + c.tokens + [0] * (width - len(prompt) - len(c.tokens)) for prompt, c in rows])
    mask = torch.tensor([[len(prompt) <= t < len(prompt) + len(c.tokens) for t in range(width)] for prompt, c in rows])
    learner = Transformer.from_pretrained(folder)       # never packed
    learner.n_tokens = n_tokens
    with torch.no_grad():
        expected = learner.token_logprobs(tokens, mask, 0.7)[0][mask]
    gap = (torch.tensor([lp for _, c in rows for lp in c.logprobs]) - expected).abs()
    assert gap.mean() < 1e-6 * max(1.0, expected.abs().mean().item()) and gap.max() < 5e-5
    assert max(token for _, c in rows for token in c.tokens) < n_tokens, "ids beyond the tokenizer are never drawn"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_load_weights_refreshes_what_is_sampled_from(layout, dtype, qwen2, tmp_path):
    """After load_weights a sampler draws what one built from those weights draws, in each layout and precision."""
    random_model("qwen2", tmp_path, seed=1)
    config, prompts = SamplerConfig(max_new_tokens=24), ragged_prompts(131, LENGTHS)
    old, new = (Sampler(Transformer.from_pretrained(folder, dtype), config, [7]) for folder in (qwen2[1], tmp_path))
    before, expected = (flat(sampler.generate(prompts, 2, (0,))) for sampler in (old, new))
    assert (old.model.packed_head is not None) == (layout == "packed")
    old.load_weights(new.model.named_parameters())
    assert before != expected and flat(old.generate(prompts, 2, (0,))) == expected


@pytest.mark.usefixtures("layout")
def test_bfloat16_logprobs_are_close_to_the_learners():
    """On the tiny policy; DESIGN's figure for bf16 rounding is a mean of 4e-3 per token."""
    model = Transformer.from_pretrained("tiny/policy", torch.bfloat16)
    prompt = [5, 6, 7]
    completions = Sampler(model, SamplerConfig(max_new_tokens=32), []).generate([prompt], 8, (0,))[0]
    tokens = torch.tensor([prompt + c.tokens for c in completions])
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    mask[:, len(prompt):] = True
    with torch.enable_grad():                           # the learner's products, which are never the packed ones
        logp, _ = Transformer.from_pretrained("tiny/policy", torch.bfloat16).token_logprobs(tokens, mask, 1.0)
    gap = (logp.detach()[:, len(prompt):] - torch.tensor([c.logprobs for c in completions])).abs()
    assert gap.mean() < 1e-2 and gap.max() < 0.2


@pytest.fixture
def two_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("two_threads")
def test_small_products_run_on_one_thread_and_the_setting_comes_back(qwen2, monkeypatch):
    """Also after an error in the middle of a rollout; what the threads are changes no token."""
    sampler, prompts = sampler_for(qwen2[1], slots=4), ragged_prompts(131, LENGTHS)
    seen, step = [], Sampler.step
    monkeypatch.setattr(Sampler, "step", lambda *args: (seen.append(torch.get_num_threads()), step(*args)))
    expected = sampler.generate(prompts, 3, (0,))
    assert set(seen) == {1} and torch.get_num_threads() == 2
    monkeypatch.setattr("sampler.ONE_THREAD_BELOW", 0)
    assert flat(sampler.generate(prompts, 3, (0,))) == flat(expected) and seen[-1] == 2
    monkeypatch.setattr(Sampler, "step", lambda *args: 1 / 0)
    monkeypatch.setattr("sampler.ONE_THREAD_BELOW", 2**40)
    with pytest.raises(ZeroDivisionError):
        sampler.generate(prompts, 3, (0,))
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("kind", ["nan in free slots", "1e4 after each row"])
def test_stale_and_future_cache_is_never_read(kind, qwen2, monkeypatch):
    """Whatever an earlier row left in a slot must leave every completion bit for bit as it was."""
    _, folder = qwen2
    prompts = ragged_prompts(131, LENGTHS)
    clean = sampler_for(folder, slots=4).generate(prompts, 3, (0,))
    decode, admit = Rollout.decode, Rollout.admit

    def poison(self):
        for layer in self.slots.layers if self.row_of else ():
            for cache in layer:
                if kind == "nan in free slots":
                    cache[len(self.row_of) :] = math.nan
                    continue
                for slot, position in enumerate(self.slots.position_S[: len(self.row_of)].tolist()):
                    cache[slot, position:] = 1e4

    def poisoned_decode(self):
        self.reserve(self.longest + 1)
        poison(self)
        decode(self)

    def poisoned_admit(self):
        poison(self)
        admit(self)

    monkeypatch.setattr(Rollout, "decode", poisoned_decode)
    monkeypatch.setattr(Rollout, "admit", poisoned_admit)
    assert sampler_for(folder, slots=4).generate(prompts, 3, (0,)) == clean


def test_a_host_that_looks_late_draws_the_same_tokens(qwen2, monkeypatch):
    """Every 8 steps, as on a GPU: finished rows stand still until then, and what they draw meanwhile is not theirs."""
    _, folder = qwen2
    prompts = ragged_prompts(131, LENGTHS)
    expected = sampler_for(folder, slots=4, stop=range(8)).generate(prompts, 3, (0,))
    sampler = sampler_for(folder, slots=4, stop=range(8))
    sampler.sync_every = 8
    got = sampler.generate(prompts, 3, (0,))
    assert flat(got) == flat(expected)
    assert [c.finish for g in got for c in g] == [c.finish for g in expected for c in g]
    assert {c.finish for g in got for c in g} == {"stop", "length"}, "both ways to end occur"


def test_finish_reasons_and_limits(qwen2):
    _, folder = qwen2
    everything = sampler_for(folder, stop=range(131)).generate([[5], [6, 7]], 2, (0,))
    assert all(c.finish == "stop" and len(c.tokens) == len(c.logprobs) == 1 for group in everything for c in group)
    nothing = sampler_for(folder, stop=(), new=1).generate([[5]], 2, (0,))
    assert [c.finish for c in nothing[0]] == ["length", "length"]
    at_the_limit = sampler_for(folder, stop=range(131), new=1).generate([[5]], 2, (0,))
    assert [c.finish for c in at_the_limit[0]] == ["stop", "stop"], "a stop token in the last place is no truncation"
    assert sampler_for(folder).generate([], 2, (0,)) == []
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        sampler_for(folder).generate([[5], []], 2, (0,))
    with pytest.raises(ValueError, match="prompt 0 has 240 tokens.*256"):
        sampler_for(folder).generate([[5] * 240], 2, (0,))


def test_a_stop_id_the_model_does_not_have_is_refused():
    model = Transformer.from_pretrained("tiny/policy")
    Sampler(model, SamplerConfig(), [model.g.vocab - 1])
    with pytest.raises(ValueError, match=f"token {model.g.vocab}, and the model has {model.g.vocab} of them"):
        Sampler(model, SamplerConfig(), [3, model.g.vocab])


def test_drawn_tokens_follow_the_softmax():
    """Chi-square over 200,000 draws at a temperature; false alarm below 1e-6 (df 15, statistic under 60)."""
    logits = torch.randn(16, generator=torch.Generator().manual_seed(0))
    uniform = torch.rand(200_000, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    tokens, logprobs, _ = sample_tokens(logits.expand(200_000, -1), uniform, 0.7)
    expected = (logits / 0.7).softmax(-1)
    counts = torch.bincount(tokens, minlength=16)
    statistic = ((counts - 200_000 * expected) ** 2 / (200_000 * expected)).sum()
    assert statistic < 60
    torch.testing.assert_close(logprobs, expected.log()[tokens])


def test_impossible_tokens_are_never_drawn():
    """u just below 1 must not round up to the last id, which here has probability 0.

    And u = 0 must not pick a first id of probability 0.
    """
    logits = torch.full((2, 5), float("-inf"))
    logits[:, 1:3] = 0.0
    tokens, *_ = sample_tokens(logits, torch.tensor([1 - 2**-53, 0.0], dtype=torch.float64), 1.0)
    assert tokens.tolist() == [2, 1]


@pytest.mark.parametrize("V", [131, 4096, 5000, 40 * 128])
def test_two_levels_draw_what_one_does(V):
    """Against one float64 scan; among the numbers are those next to 0 and 1, and ids of mass 0 are never found."""
    generator = torch.Generator().manual_seed(V)
    mass = (torch.randn(300, V, generator=generator) * 3).exp()
    mass[:, torch.rand(V, generator=generator) < 0.3] = 0
    mass[:100, 200:] = 0                                # the last blocks are empty
    mass[100:200, :120] = 0
    uniform = torch.rand(300, 1, generator=generator, dtype=torch.float64)
    uniform[::10], uniform[1::10] = 0, 1 - 2**-53
    target = uniform * mass.sum(-1, keepdim=True, dtype=torch.float64)
    ends = mass.cumsum(-1, dtype=torch.float64)
    expected = torch.searchsorted(ends, target.minimum(ends[:, -1:].nextafter(torch.zeros(()).double())), right=True)
    found, total = inverse_cdf(mass, uniform.squeeze(-1))
    torch.testing.assert_close(total, ends[:, -1:], rtol=1e-14, atol=0)
    assert (mass.gather(-1, found) > 0).all()
    at_a_border = (ends.gather(-1, expected) - target).abs() < 1e-12 * ends[:, -1:]
    assert torch.equal(found[~at_a_border], expected[~at_a_border]) and at_a_border.sum() <= 30


@pytest.mark.parametrize("V", [131, 4096])
def test_logits_that_are_nan_draw_an_id_with_a_nan_logprob(V):
    """So that the learner's check names the step; an index out of range would end a GPU's process."""
    tokens, logprobs, _ = sample_tokens(torch.full((2, V), float("nan")), torch.tensor([0.1, 0.9]).double(), 1.0, 0.9)
    assert (tokens < V).all() and logprobs.isnan().all()


@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.95, 0.999])
def test_top_p_equals_transformers_warper(top_p):
    """The crossing token stays; of equal masses, where a sort keeps some, all stay."""
    generator = torch.Generator().manual_seed(0)
    warper = transformers.generation.TopPLogitsWarper(top_p)
    for logits in (torch.randn(50, 40, generator=generator) * 3, torch.randn(20, 5000, generator=generator) * 2):
        mass = (logits - logits.amax(-1, keepdim=True)).exp()
        expected = warper(None, logits.clone()).isfinite()
        assert torch.equal(nucleus(mass, top_p), mass * expected)
    logits = torch.randint(0, 3, (50, 40), generator=generator).float()
    least = logits.masked_fill(warper(None, logits.clone()).isinf(), 9).amin(-1, keepdim=True)
    mass = (logits - logits.amax(-1, keepdim=True)).exp()
    assert torch.equal(nucleus(mass, top_p), mass * (logits >= least))


def test_top_p_draws_the_nucleus_and_scores_the_whole_distribution():
    """Chi-square over 20,000 draws (df 2, statistic under 30: odds 3e-7).

    The mass of three tokens is shared as without the cut; log-probs do not change.
    """
    probabilities = torch.tensor([0.05, 0.4, 0.1, 0.15, 0.3], dtype=torch.float64)
    uniform = torch.rand(20_000, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    tokens, logprobs, _ = sample_tokens(probabilities.log().expand(20_000, -1), uniform, 1.0, top_p=0.8)
    expected = probabilities * torch.tensor([0, 1, 0, 1, 1]) / 0.85
    counts = torch.bincount(tokens, minlength=5)
    assert counts[[0, 2]].tolist() == [0, 0]
    assert ((counts - 20_000 * expected) ** 2 / (20_000 * expected))[[1, 3, 4]].sum() < 30
    torch.testing.assert_close(logprobs, probabilities.log()[tokens])


def test_group_first_tokens_are_independent_draws(qwen2):
    """400 first tokens of one prompt follow the softmax (chi-square on the 5 likeliest and the rest, odds < 1e-6)."""
    theirs, folder = qwen2
    prompt = ragged_prompts(131, [6])[0]
    with torch.no_grad():
        probabilities = (theirs(torch.tensor([prompt])).logits[0, -1] / 6).softmax(-1)
    groups = sampler_for(folder, temperature=6.0, new=1).generate([prompt], 400, (3,))
    top = probabilities.topk(5)
    counts = torch.tensor([sum(c.tokens[0] == i for c in groups[0]) for i in top.indices.tolist()])
    observed = torch.cat((counts, 400 - counts.sum(0, keepdim=True))).float()
    expected = 400 * torch.cat((top.values, 1 - top.values.sum(0, keepdim=True)))
    assert ((observed - expected) ** 2 / expected).sum() < 36


def test_memory_is_flat_over_rollouts(qwen2):
    """Twenty rollouts in a process of their own: the peak after the third is the peak after the last, within 2 %."""
    script = f"""
import sys; sys.path.insert(0, ".")
from pathlib import Path
from model import Transformer
from sampler import Sampler, SamplerConfig
def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
sampler = Sampler(Transformer.from_pretrained({str(qwen2[1])!r}), SamplerConfig(max_new_tokens=40), [7])
for i in range(20):
    sampler.generate([[5] * 5, [6] * 90, [9]], 4, (i,))
    if i == 2: first = peak()
print(first, peak())
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    first, last = map(int, result.stdout.split())
    assert last <= 1.02 * first
