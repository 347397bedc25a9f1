"""model.py against transformers: logits, gradients, RoPE tables, folders."""
import json

import pytest
import torch
import transformers
from conftest import random_model, ragged_prompts
from safetensors.torch import load_file, save_file

from model import Geometry, HeadLogprobs, RMSNorm, Transformer, rope_frequencies, rope_table
from stream import Stream

LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}
CASES = {
    "qwen2, heads 4:2": ("qwen2", {}),
    "qwen2, heads 6:1, tied, theta 1e6": ("qwen2",
                                          dict(num_attention_heads=6, num_key_value_heads=1, tie_word_embeddings=True,
                                                        rope_parameters={"rope_type": "default", "rope_theta": 1e6})),
    "qwen2, heads 4:4": ("qwen2", dict(num_key_value_heads=4)),
    "qwen3, own head size": ("qwen3", dict(head_dim=16)),
    "llama": ("llama", {}),
    "llama, biases": ("llama", dict(attention_bias=True, mlp_bias=True)),
    "llama, llama3 rope": ("llama", dict(rope_parameters=LLAMA3)),
}


def right_padded(prompts):
    width = max(map(len, prompts))
    tokens = torch.tensor([p + [0] * (width - len(p)) for p in prompts])
    mask = torch.tensor([[1] * len(p) + [0] * (width - len(p)) for p in prompts])
    return tokens, mask


@pytest.mark.parametrize("case", CASES)
def test_logits_and_gradients_equal_transformers(case, tmp_path):
    """Reference: transformers, fp32, weights of std 0.2 (at 0.02 a wrong RoPE moves logits by 4e-3 only).

    A saved copy must read back.
    """
    architecture, settings = CASES[case]
    theirs = random_model(architecture, tmp_path / "a", **settings)
    ours = Transformer.from_pretrained(tmp_path / "a")
    tokens, mask = right_padded(ragged_prompts(131, [3, 40, 100]))
    expected, got = theirs(tokens, attention_mask=mask).logits, ours(tokens)
    real = mask.bool()
    assert (expected - got)[real].abs().max() < 1e-4 * max(1.0, expected.abs().max().item())

    expected[real].logsumexp(-1).sum().backward()
    got[real].logsumexp(-1).sum().backward()
    reference = dict(theirs.named_parameters())
    for name, gradient in ours.hf_tensors({name: p.grad for name, p in ours.named_parameters()}):
        difference = (gradient - reference[name].grad).norm()
        assert difference <= 1e-4 * reference[name].grad.norm() + 1e-5, name

    ours.save_pretrained(tmp_path / "b")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "b")
    assert set(again.state_dict()) == set(theirs.state_dict())
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, theirs.state_dict()[name]), name
    for name in ("config.json", "generation_config.json"):      # the second lists what ends a completion
        before, after = (json.loads((tmp_path / x / name).read_text()) for x in "ab")
        assert before == after


def test_tiny_policy_equals_transformers():
    """The committed policy is a plain Hugging Face folder: same logits (1e-4) in both."""
    theirs = transformers.AutoModelForCausalLM.from_pretrained("tiny/policy")
    tokens = torch.randint(0, theirs.config.vocab_size, (4, 60), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert (theirs(tokens).logits - Transformer.from_pretrained("tiny/policy")(tokens)).abs().max() < 1e-4


@pytest.mark.parametrize("rope", [{"rope_type": "default", "rope_theta": 1e4},
                                  {"rope_type": "default", "rope_theta": 1e6}, LLAMA3])
def test_rope_table_is_bit_equal_to_transformers(rope):
    """Up to position 131,071, where an angle computed in another order is off by whole radians through rounding."""
    config = transformers.LlamaConfig(hidden_size=256, num_attention_heads=2, max_position_embeddings=131072,
                                      rope_parameters=rope)
    theirs = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(config)
    geometry = Geometry.from_json({**config.to_dict(), "architectures": ["LlamaForCausalLM"]})
    positions = torch.arange(131072)
    cos, sin = rope_table(rope_frequencies(geometry), positions, torch.float32)
    their_cos, their_sin = theirs(torch.zeros(1), positions[None])
    assert torch.equal(cos, their_cos[0]) and torch.equal(sin, their_sin[0])


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 2**-6)])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_norm_equals_its_formula_in_float64(dtype, atol, size):
    """eps must count (small inputs), and bf16 be squared in float32 (large ones)."""
    generator = torch.Generator().manual_seed(0)
    x, norm = (size * torch.randn(5, 3, 96, generator=generator)).to(dtype), RMSNorm(96, 1e-6).to(dtype)
    torch.nn.init.normal_(norm.weight, generator=generator)
    wide = x.double()
    expected = wide / (wide.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight.double()
    torch.testing.assert_close(norm(x).double(), expected, rtol=0, atol=atol)


def test_token_logprobs_equal_dense_softmax(qwen2, monkeypatch):
    """Chunked and recomputed or dense, at a temperature, over the tokenizer's ids only.

    Same values, entropies and gradients.
    """
    _, folder = qwen2
    tokens, mask = right_padded(ragged_prompts(120, [5, 17, 30]))
    mask = mask.bool()
    mask[:, :3] = False
    results = []
    for logits_per_chunk in (2**24, 131 * 7):
        monkeypatch.setattr("model.LOGITS_PER_CHUNK", logits_per_chunk)
        model = Transformer.from_pretrained(folder, torch.float64)
        model.n_tokens = 120
        logp, entropy = model.token_logprobs(tokens, mask, temperature=0.7)
        logp.sum().backward()
        results.append((logp, entropy, model.head.weight.grad, model.embed.weight.grad))
    for chunked, whole in zip(*results):
        torch.testing.assert_close(chunked, whole, rtol=1e-12, atol=1e-12)
    dense = (model(tokens)[..., :120] / 0.7).log_softmax(-1)
    expected = torch.zeros_like(logp)
    expected[:, 1:] = dense[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]
    torch.testing.assert_close(logp, expected * mask, rtol=1e-10, atol=1e-10)
    expected_entropy = torch.zeros_like(logp)
    expected_entropy[:, 1:] = torch.distributions.Categorical(logits=dense[:, :-1]).entropy()
    torch.testing.assert_close(entropy, expected_entropy * mask, rtol=1e-10, atol=1e-10)


def ragged_groups(seed: int, vocab: int = 120) -> list[tuple[list[int], list[list[int]]]]:
    """Prompts of 1 to 40 tokens with 1 to 5 completions of 1 to 70; some of each have a single token."""
    def draw(*lengths: int) -> list[list[int]]:
        return [torch.randint(vocab, (length,), generator=generator).tolist() for length in lengths]

    generator = torch.Generator().manual_seed(seed)
    sizes = [(6, (40,)), (1, (1,)), (1, (5, 70, 1)), (40, (3, 1, 1)), (7, (1, 12)), (23, (30, 2, 31, 64, 8))]
    return [(*draw(prompt), draw(*completions)) for prompt, completions in sizes[2 * seed :] + sizes[: 2 * seed]]


def padded_logprobs(model: Transformer, groups, temperature: float) -> torch.Tensor:
    """The log-probs of the groups' completions in rows of their own, in order."""
    rows = [(prompt, completion) for prompt, completions in groups for completion in completions]
    tokens, mask = right_padded([prompt + completion for prompt, completion in rows])
    mask = mask.bool() & (torch.arange(tokens.shape[1]) >= torch.tensor([[len(prompt)] for prompt, _ in rows]))
    return model.token_logprobs(tokens, mask, temperature)[0][mask]


def with_gradients(model: Transformer, logp_M: torch.Tensor) -> list[torch.Tensor]:
    """Log-probs, and the gradients of a sum that weighs each otherwise."""
    model.zero_grad()
    (logp_M * torch.linspace(-1, 2, len(logp_M), dtype=logp_M.dtype, device=logp_M.device)).sum().backward()
    return [logp_M.detach(), *(p.grad.clone() for p in model.parameters())]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", range(3))
def test_a_stream_equals_padded_rows(case, seed, tmp_path):
    """Log-probs and all gradients in float64, with recomputation too; in bf16 as near as rounding lets them be."""
    architecture, settings = CASES[case]
    random_model(architecture, tmp_path, **settings)
    model, groups = Transformer.from_pretrained(tmp_path, torch.float64), ragged_groups(seed)
    model.n_tokens = 120 if seed else 131
    expected = with_gradients(model, padded_logprobs(model, groups, 0.7))
    for model.checkpoint_activations in (False, True):
        got = with_gradients(model, model.stream_logprobs(Stream(groups, "cpu"), 0.7))
        assert all((a - b).norm() <= 1e-12 * b.norm() for a, b in zip(got, expected, strict=True))
    model = Transformer.from_pretrained(tmp_path)
    model.compute_dtype = torch.bfloat16
    close = with_gradients(model, model.stream_logprobs(Stream(groups, "cpu"), 0.7))
    assert all(x.dtype == torch.float32 for x in close)
    assert (close[0] - expected[0]).norm() < 0.1 * expected[0].norm()


def test_a_stream_equals_transformers(tmp_path):
    """An independent reference: each row alone, log-softmax over dense logits, float64."""
    theirs = random_model("qwen3", tmp_path, head_dim=16).double()
    model, groups = Transformer.from_pretrained(tmp_path, torch.float64), ragged_groups(0)
    got = model.stream_logprobs(Stream(groups, "cpu"), 0.7)
    expected = []
    for prompt, completion in ((prompt, completion) for prompt, completions in groups for completion in completions):
        logits = theirs(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1] / 0.7
        expected.append(logits.log_softmax(-1).gather(-1, torch.tensor(completion)[:, None])[:, 0])
    torch.testing.assert_close(got, torch.cat(expected), rtol=1e-5, atol=1e-5)       # their norms are in float32


def test_a_stream_holds_distinct_tokens_once():
    """Prompts once, completions without their last token, positions that go on from the prompt's."""
    stream = Stream([([5, 6, 7], [[1, 2], [3], [1, 2, 4]]), ([8], [[9]])], "cpu")
    assert stream.tokens_1T.tolist() == [[5, 6, 7, 1, 1, 2, 8]] and stream.positions_T.tolist() == [0, 1, 2, 3, 3, 4, 0]
    assert stream.targets_M.tolist() == [1, 2, 3, 1, 2, 4, 9] and stream.predicting_M.tolist() == [2, 3, 2, 2, 4, 5, 6]


def test_an_empty_stream_has_gradients_of_zero(qwen2):
    """What a rank without rows passes over: FSDP2 waits for its gradients."""
    model = Transformer.from_pretrained(qwen2[1])
    logp = model.stream_logprobs(Stream([], "cpu"), 1.0)
    logp.sum().backward()
    assert logp.shape == (0,) and all(p.grad is not None and not p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("rows", [4, 3, 1])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_head_gradient_equals_autograds(temperature, rows):
    """Written by hand, whole or in chunks that are computed again.

    A target that occurs twice counts twice, masked ids have none.
    """
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(size, 5, generator=generator, dtype=torch.float64, requires_grad=True) for size in (4, 9)]
    targets, upstream = torch.tensor([3, 0, 3, 6]), torch.randn(4, generator=generator, dtype=torch.float64)
    dense = (inputs[0] @ inputs[1][:7].t() / temperature).log_softmax(-1)
    got, entropy = HeadLogprobs.apply(inputs[0], targets, inputs[1], temperature, 7, rows, True)
    torch.testing.assert_close(entropy, torch.distributions.Categorical(logits=dense.detach()).entropy(), rtol=1e-12,
                               atol=1e-12)
    expected = torch.autograd.grad(dense[torch.arange(4), targets], inputs, upstream)
    for mine, theirs in zip(torch.autograd.grad(got, inputs, upstream), expected):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


def test_head_gradient_in_bfloat16_is_rounded_once():
    """Over 100 chunks it is as near to float64 as in one: 5e-3 of its norm (1e-2 and more if each sum were rounded)."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = ((torch.randn(*shape, generator=generator) / 3).bfloat16().requires_grad_()
                      for shape in ((800, 32), (500, 32)))
    targets, upstream = torch.randint(0, 500, (800,), generator=generator), torch.randn(800, generator=generator)
    exact = (hidden.double() @ weight.double().t()).log_softmax(-1)[torch.arange(800), targets]
    expected = torch.autograd.grad(exact, weight, upstream.double())[0].double()
    for rows in (800, 8):
        got = HeadLogprobs.apply(hidden, targets, weight, 1.0, 500, rows, True)[0]
        error = (torch.autograd.grad(got, weight, upstream)[0].double() - expected).norm() / expected.norm()
        assert error < 6e-3


def test_bfloat16_rounds_neither_the_normaliser_nor_the_rotary_frequencies(qwen2):
    """Log-probs of bf16 logits in float64 to 1e-5 (bf16 sums are off by 1e-2).

    At position 10^5 a rounded frequency is off by whole turns.
    """
    generator = torch.Generator().manual_seed(0)
    hidden, weight = ((torch.randn(*shape, generator=generator) / 3).bfloat16() for shape in ((20, 48), (500, 48)))
    targets = torch.randint(0, 500, (20,), generator=generator)
    logp, entropy = HeadLogprobs.apply(hidden, targets, weight, 0.7, 500, 20, True)
    exact = torch.distributions.Categorical(logits=torch.nn.functional.linear(hidden, weight).double() / 0.7)
    torch.testing.assert_close(logp.double(), exact.log_prob(targets), rtol=0, atol=1e-5)
    torch.testing.assert_close(entropy.double(), exact.entropy(), rtol=0, atol=1e-5)
    whole, half = (Transformer.from_pretrained(qwen2[1], dtype) for dtype in (torch.float32, torch.bfloat16))
    assert half.embed.weight.dtype == torch.bfloat16 and torch.equal(half.inv_freq, whole.inv_freq)


def test_sharded_and_bf16_files_load(tmp_path):
    theirs = random_model("qwen2", tmp_path / "one")
    theirs.to(torch.bfloat16).save_pretrained(tmp_path / "many", max_shard_size="50KB")
    assert (tmp_path / "many" / "model.safetensors.index.json").exists()
    tokens = torch.arange(20)[None]
    reloaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "many", dtype=torch.float32)
    with torch.no_grad():
        expected = reloaded(tokens).logits
        logits = Transformer.from_pretrained(tmp_path / "many")(tokens)
        assert (logits - expected).abs().max() < 1e-4 * expected.abs().max()


def edit(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


@pytest.mark.parametrize(("changes", "words"), [
    (dict(architectures=["GPT2LMHeadModel"]), ["GPT2LMHeadModel", "Qwen2ForCausalLM"]),
    (dict(rope_parameters={"rope_type": "yarn", "rope_theta": 1e4}), ["yarn", "llama3"]),
    (dict(use_sliding_window=True), ["use_sliding_window", "full attention"]),
    (dict(hidden_act="gelu"), ["hidden_act", "silu"]),
    (dict(num_hidden_layers=4), ["missing", "model.layers.3"]),
    (dict(num_hidden_layers=2), ["unexpected tensor", "model.layers.2"]),
    (dict(intermediate_size=81), ["shape", "_proj", "config.json asks for"]),
])
def test_unsupported_folders_are_one_clear_error(changes, words, tmp_path):
    random_model("qwen2", tmp_path)
    edit(tmp_path, **changes)
    with pytest.raises(ValueError) as error:
        Transformer.from_pretrained(tmp_path)
    for word in words:
        assert word in str(error.value)


def test_bin_weights_and_empty_folders_are_refused(tmp_path):
    with pytest.raises(ValueError, match="config.json"):
        Transformer.from_pretrained(tmp_path)
    random_model("qwen2", tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="safetensors"):
        Transformer.from_pretrained(tmp_path)


LLAMA_KEYS = ("factor", "low_freq_factor", "high_freq_factor")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        *(
            (dict(rope_parameters={key: value for key, value in LLAMA3.items() if key != missing}), ["llama3", missing])
            for missing in LLAMA_KEYS
        ),
        (
            dict(rope_scaling={"rope_type": "llama3", "low_freq_factor": 1.0}, rope_parameters=None),
            ["llama3", "'factor'"],
        ),
        (dict(rope_parameters={**LLAMA3, "factor": "8"}), ["'factor'", "'8'"]),
        (dict(rope_parameters={**LLAMA3, "factor": 0}), ["'factor'", "0"]),
        (dict(rope_parameters={"full_attention": {"rope_type": "default", "rope_theta": 1e6}}), ["rope_parameters"]),
        (dict(rope_parameters="default"), ["rope_parameters"]),
        (dict(num_attention_heads=0), ["num_attention_heads", "0"]),
        (dict(hidden_size="48"), ["hidden_size", "'48'"]),
    ],
)
def test_a_config_that_cannot_be_computed_with_is_one_clear_error(changes, words, tmp_path):
    random_model("qwen2", tmp_path)
    edit(tmp_path, **changes)
    with pytest.raises(ValueError) as error:
        Geometry.from_folder(tmp_path)
    for word in [*words, str(tmp_path / "config.json")]:
        assert word in str(error.value)


@pytest.mark.parametrize("places", [{}, {"rope": 64}, {"top": 32, "rope": 64}])
def test_the_original_context_of_llama3_is_read_where_transformers_reads_it(places):
    """Next to the others, above them, or that of the model."""
    rope = {key: value for key, value in LLAMA3.items() if key != "original_max_position_embeddings"} | (
        {"original_max_position_embeddings": places["rope"]} if "rope" in places else {})
    top = {"original_max_position_embeddings": places["top"]} if "top" in places else {}
    config = transformers.LlamaConfig(
        hidden_size=256, num_attention_heads=2, max_position_embeddings=96, rope_parameters={**rope}, **top
    )
    theirs = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(config)
    geometry = Geometry.from_json({**config.to_dict(), "architectures": ["LlamaForCausalLM"], "rope_parameters": rope})
    assert torch.equal(rope_frequencies(geometry), theirs.inv_freq)


@pytest.fixture
def tied(tmp_path):
    """A tied model's folder, and its tensors."""
    random_model("qwen2", tmp_path, tie_word_embeddings=True)
    return tmp_path, load_file(tmp_path / "model.safetensors")


def test_a_tied_models_other_head_is_refused(tied):
    """Merged and extended models have one; an equal copy is no harm, whatever the precision it is read in."""
    folder, tensors = tied
    embedding = tensors["model.embed_tokens.weight"]
    save_file({**tensors, "lm_head.weight": embedding.clone()}, folder / "model.safetensors")
    for dtype in (torch.float32, torch.bfloat16):
        Transformer.from_pretrained(folder, dtype)
    for other in (-embedding, torch.cat((embedding, embedding[:5]))):
        save_file({**tensors, "lm_head.weight": other}, folder / "model.safetensors")
        with pytest.raises(ValueError, match="lm_head.weight differs.*tie_word_embeddings"):
            Transformer.from_pretrained(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    "name", ["model.norm.weight", "model.layers.1.mlp.down_proj.weight", "model.layers.0.self_attn.k_proj.bias"]
)
def test_weights_that_are_not_finite_are_refused(tied, name, value):
    """The sampler would draw something from them all the same."""
    folder, tensors = tied
    tensors[name].view(-1)[3] = value
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match=f"{name}' has values that are nan or not finite"):
        Transformer.from_pretrained(folder)


@pytest.mark.parametrize("shards", [True, False])
def test_the_single_file_goes_before_an_index(tied, shards):
    """As in transformers: an index next to it is stale, with its shards or without."""
    folder, tensors = tied
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": dict.fromkeys(tensors, "model-00001-of-00001.safetensors")})
    )
    if shards:
        save_file({name: tensor / 2 for name, tensor in tensors.items()}, folder / "model-00001-of-00001.safetensors")
    read = Transformer.from_pretrained(folder).norm.weight
    assert torch.equal(
        read, transformers.AutoModelForCausalLM.from_pretrained(folder).model.norm.weight
    ) and torch.equal(read, tensors["model.norm.weight"])


def test_an_index_without_its_shards_or_its_map_is_refused(tied):
    folder, tensors = tied
    (folder / "model.safetensors").unlink()
    for text, words in (
        (
            '{"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}',
            "no model-00001-of-00002.safetensors",
        ),
        ("{}", "weight_map"),
        ('{"weight_map": {"a": 1}}', "weight_map"),
        ("[]", "JSON object"),
    ):
        (folder / "model.safetensors.index.json").write_text(text)
        with pytest.raises(ValueError, match=words):
            Transformer.from_pretrained(folder)


def test_adapters_are_refused_by_name(tied):
    """Alone, or next to a whole model, where transformers would look for another base."""
    folder, _ = tied
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/base"}')
    for _ in range(2):
        for read in (Geometry.from_folder, Transformer.from_pretrained):
            with pytest.raises(ValueError, match="adapter.*owner/base.*merge"):
                read(folder)
        (folder / "config.json").unlink(missing_ok=True)
