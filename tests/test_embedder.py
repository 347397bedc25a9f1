"""embedder.py: what is read of a completion, what is refused, the policy as embedder against transformers, a run."""
import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
import transformers
from conftest import ragged_prompts, random_model
from safetensors.torch import load_file, save_file
from test_loop import PROBLEMS, run
from test_run import records

import embedder as embedder_module
from embedder import Embedder, PolicyEmbedder, reasoning_span
from model import Transformer
from prompts import decode, load_tokenizer
from reward import cosine_similarity
from sampler import Sampler, SamplerConfig

CONTEXT = 64


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("tiny/policy")


@pytest.fixture(scope="module")
def modernbert(tmp_path_factory, tokenizer) -> tuple[transformers.PreTrainedModel, Path]:
    """The class of the default embedder, small and random, with a context of 64 tokens.

    Saved as a plain folder, which sentence-transformers pools by the mean.
    """
    folder = tmp_path_factory.mktemp("modernbert")
    torch.manual_seed(0)
    ids = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"),
                        tokenizer.pad_token_id)
    config = transformers.ModernBertConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48,
                                           num_hidden_layers=2, num_attention_heads=2,
                                           max_position_embeddings=CONTEXT, initializer_range=0.3, **ids)
    model = transformers.AutoModel.from_config(config).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").unlink()           # with one, sentence-transformers makes every text a user's turn
    return model, folder


@pytest.fixture(scope="module")
def policy(tmp_path_factory, tokenizer) -> tuple[transformers.PreTrainedModel, Path]:
    folder = tmp_path_factory.mktemp("policy")
    return random_model("qwen2", folder, vocab_size=len(tokenizer)), folder


TEXTS = ["12+34=46, so \\boxed{46}", "a", "", "tens 10+30=40, ones 2+4=6, 40+6=46 so \\boxed{46}", "x " * 20]


@pytest.mark.parametrize(("text", "read"), [
    ("add \\boxed{1} then \\boxed{2}.", "add \\boxed{1} then "),                # before the last box
    ("add \\fbox{1} then \\boxed 2", "add \\fbox{1} then "),
    ("add, so \\boxed{1", "add, so "),                                          # cut within its answer
    ("<think>a</think> so \\boxed{2}", "a"),
    ("a \\boxed{1} b</think> so \\boxed{2}", "a \\boxed{1} b"),     # opened by the template; a box within is reasoning
    ("<think>a</think>b</think>c", "a</think>b"),
    ("Well. <think>a so \\boxed{2}", "a so "),                                  # opened and never closed
    ("neither", "neither"),
    ("<think>cut", "cut"),
    ("\\boxed{2}", "\\boxed{2}"),                                               # nothing left: the whole
    ("<think>\n</think>\\boxed{2}", "<think>\n</think>\\boxed{2}"),
    ("a</think><think>b \\boxed{2}", "a"),
    ("", ""),
])
def test_reasoning_by_hand(text, read):
    assert text[slice(*reasoning_span(text))] == read


def test_modernbert_is_the_mean_of_its_hidden_states(modernbert, tokenizer):
    """Through sentence-transformers, in any batch, against transformers one text at a time; and the reasoning alone."""
    model, folder = modernbert
    with torch.no_grad():
        for part, texts in (("completion", TEXTS), ("reasoning", [text.partition("\\boxed")[0] for text in TEXTS])):
            got = Embedder(str(folder), part=part, max_new_tokens=CONTEXT).encode(TEXTS)
            for row, text in zip(got, texts):
                if text:                                # no token at all: whatever pooling makes of it, but finite
                    expected = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
                    torch.testing.assert_close(row, expected, rtol=0, atol=1e-5)
            assert got.dtype == torch.float32 and got.isfinite().all()


def test_long_texts_are_read_up_to_the_limit_and_counted(modernbert, tokenizer):
    """dra.max_tokens, and the embedder's own context, in its tokens; a text that just fits is not cut."""
    words = [f" {i}" for i in range(CONTEXT)]
    fits, one_more = "".join(words[: CONTEXT // 4]), "".join(words[: CONTEXT // 4]) + " 1 1"
    lengths = [len(tokenizer(text)["input_ids"]) for text in (fits, one_more)]
    assert lengths[0] + 2 == lengths[1]
    for embedder in (Embedder(str(modernbert[1]), max_tokens=lengths[0], max_new_tokens=10**6),
                     Embedder(str(modernbert[1]), max_tokens=lengths[0] + 1)):
        assert embedder.cut([fits, one_more, "a", fits]) == [False, True, False, False]
    shortened = Embedder(str(modernbert[1]), max_tokens=lengths[0])
    torch.testing.assert_close(*shortened.encode([fits, one_more]), rtol=0, atol=1e-6)
    assert Embedder(str(modernbert[1])).cut(["1 " * CONTEXT, "1"]) == [True, False]
    assert Embedder("tiny/embedder").cut(["1 " * 10_000]) == [False]


def test_half_precision_is_close_and_comes_back_in_float32(modernbert):
    whole = Embedder(str(modernbert[1])).encode(TEXTS)
    half = Embedder(str(modernbert[1]), dtype=torch.bfloat16).encode(TEXTS)
    assert half.dtype == torch.float32 and not torch.equal(whole, half)
    assert torch.cosine_similarity(whole[:2], half[:2]).min() > 0.999


def edited(folder: Path, source: Path, weights=lambda found: found, **config) -> str:
    """A copy of an embedder's folder with other weights and config."""
    shutil.copytree(source, folder)
    save_file(weights(load_file(source / "model.safetensors")), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({**json.loads((source / "config.json").read_text()), **config}))
    return str(folder)


def test_short_contexts_are_refused(modernbert):
    for options, words in (({"max_new_tokens": CONTEXT + 1},
                            ["reads 64 tokens", "sampler.max_new_tokens = 65", "dra.max_tokens = 64"]),
                           ({"max_tokens": CONTEXT + 1}, ["dra.max_tokens = 65", "64"])):
        with pytest.raises(ValueError) as error:
            Embedder(str(modernbert[1]), **options)
        assert all(word in str(error.value) for word in words)
    with pytest.raises(ValueError, match="no limit of its own"):
        Embedder("tiny/embedder", max_tokens=5)


def test_weights_that_would_stay_random_are_refused(modernbert, tmp_path, tokenizer):
    """A missing matrix, and the case of jina-embeddings-v2.

    That has a model_type that transformers knows, weights of another network, and the code for it in the files.
    """
    names = sorted(load_file(modernbert[1] / "model.safetensors"))
    broken = edited(tmp_path / "missing", modernbert[1],
                    lambda found: {name: found[name] for name in names if name != names[3]})
    with pytest.raises(ValueError, match=f"no values for 1 weights of ModernBertModel.*{names[3]}"):
        Embedder(broken)
    config = transformers.BertConfig(vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24,
                                     num_hidden_layers=1, num_attention_heads=2)
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    gated = edited(tmp_path / "jina", tmp_path / "bert", lambda found: {
        name.replace("intermediate.dense", "mlp.gated_layers"): found[name] for name in found},
                   auto_map={"AutoModel": "owner/name--modeling.JinaBertModel"})
    with pytest.raises(ValueError, match="dra.trust_remote_code = true"):
        Embedder(gated)
    no_pooler = edited(tmp_path / "pooler", tmp_path / "bert",
                       lambda found: {name: found[name] for name in found if not name.startswith("pooler")})
    torch.testing.assert_close(Embedder(no_pooler).encode(TEXTS), Embedder(str(tmp_path / "bert")).encode(TEXTS))


def test_code_of_the_embedder_runs_on_demand_only(modernbert, tmp_path):
    """A class that only the folder knows: refused with the key that allows it, and then its own code speaks."""
    folder = edited(tmp_path / "own", modernbert[1], model_type="own",
                    auto_map={"AutoConfig": "own.Config", "AutoModel": "own.Model"})
    (tmp_path / "own" / "own.py").write_text(
        "import transformers\n\n\nclass Config(transformers.ModernBertConfig):\n    model_type = 'own'\n\n\n"
        "class Model(transformers.ModernBertModel):\n    config_class = Config\n\n"
        "    def forward(self, *args, **options):\n        found = super().forward(*args, **options)\n"
        "        found.last_hidden_state = found.last_hidden_state * 3\n        return found\n")
    with pytest.raises(ValueError, match="dra.trust_remote_code = true"):
        Embedder(folder)
    torch.testing.assert_close(Embedder(folder, trust_remote_code=True).encode(["a"]),
                               3 * Embedder(str(modernbert[1])).encode(["a"]))


@pytest.mark.parametrize("broken", ["empty", "weights", "nowhere"])
def test_what_cannot_be_loaded_is_one_line(broken, modernbert, tmp_path):
    if broken == "empty":
        (tmp_path / broken).mkdir()
    if broken == "weights":
        shutil.copytree(modernbert[1], tmp_path / broken)
        (tmp_path / broken / "model.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="dra.embedder = .* cannot be loaded: .") as error:
        Embedder(str(tmp_path / broken))
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------------------------ the policy


def test_policy_embedding_is_the_mean_of_transformers_hidden_states(policy):
    reference, folder = policy
    tokens = ragged_prompts(131, [5, 1, 17, 0, 9])
    got = PolicyEmbedder(Transformer.from_pretrained(folder)).encode([""] * 5, tokens)
    assert got.shape == (5, 48) and got[3].abs().max() == 0
    with torch.no_grad():
        for row, ids in zip(got, tokens):
            if ids:
                torch.testing.assert_close(row, reference.model(torch.tensor([ids])).last_hidden_state[0].mean(0),
                                           rtol=0, atol=1e-5)


def test_policy_embedding_depends_on_nothing_but_the_tokens(policy, monkeypatch):
    """Alone, among others, in any order and in passes of any size, to 1e-5 in fp32.

    A pass keeps to its budget, and no logits are computed.
    """
    model = Transformer.from_pretrained(policy[1])
    embedder = PolicyEmbedder(model)
    tokens = ragged_prompts(131, [5, 1, 17, 40, 9, 33, 2])
    whole = embedder.encode([""] * 7, tokens)
    order = [3, 0, 6, 2, 5, 1, 4]
    torch.testing.assert_close(embedder.encode([""] * 7, [tokens[i] for i in order]), whole[order], rtol=0, atol=1e-5)
    passes, hidden = [], model.hidden
    monkeypatch.setattr(model, "hidden", lambda tokens_nT: passes.append(tuple(tokens_nT.shape)) or hidden(tokens_nT))
    monkeypatch.setattr(model, "forward", None)
    monkeypatch.setattr(model, "next_logits", None)
    monkeypatch.setattr(embedder_module, "TOKENS_PER_PASS", 40)
    torch.testing.assert_close(embedder.encode([""] * 7, tokens), whole, rtol=0, atol=1e-5)
    assert passes == [(1, 40), (1, 33), (2, 17), (3, 5)]
    for i, ids in enumerate(tokens):
        torch.testing.assert_close(embedder.encode([""], [ids]), whole[i : i + 1], rtol=0, atol=1e-5)


def test_policy_embedding_follows_the_sampler(policy, tmp_path):
    """After load_weights it is that of the new weights, packed copies included."""
    random_model("qwen2", tmp_path, seed=1, vocab_size=policy[0].config.vocab_size, hidden_size=512,
                 intermediate_size=512, num_hidden_layers=1)
    random_model("qwen2", tmp_path / "new", seed=2, vocab_size=policy[0].config.vocab_size, hidden_size=512,
                 intermediate_size=512, num_hidden_layers=1)
    rollout_model, new = Transformer.from_pretrained(tmp_path), Transformer.from_pretrained(tmp_path / "new")
    sampler, embedder = Sampler(rollout_model, SamplerConfig(), []), PolicyEmbedder(rollout_model)
    tokens = ragged_prompts(131, [5, 9])
    before = embedder.encode(["", ""], tokens)
    sampler.load_weights(new.named_parameters())
    after = embedder.encode(["", ""], tokens)
    torch.testing.assert_close(after, PolicyEmbedder(new).encode(["", ""], tokens), rtol=0, atol=1e-5)
    assert (after - before).abs().max() > 0.1


def test_policy_reads_the_tokens_of_the_reasoning(policy, tokenizer):
    """Sampled tokens, not text tokenised again; max_tokens cuts what is left.

    Here "12" is one character a token, which the tokenizer might write otherwise.
    """
    model = Transformer.from_pretrained(policy[1])
    text = "<think> 12+3=15 é</think> so \\boxed{15}"
    ids = [token for char in text for token in tokenizer(char)["input_ids"]]
    assert tokenizer.decode(ids) == text and ids != tokenizer(text)["input_ids"]
    inside = [token for char in " 12+3=15 é" for token in tokenizer(char)["input_ids"]]
    stop = [tokenizer.eos_token_id]
    def text_of(some: list[int]) -> str:
        return decode(tokenizer, [some], stop)[0]

    embedder, whole = PolicyEmbedder(model, text_of, part="reasoning"), PolicyEmbedder(model)
    torch.testing.assert_close(embedder.encode([text], [ids + stop]), whole.encode([""], [inside]))
    bare = "\\boxed{15}"
    torch.testing.assert_close(embedder.encode([bare], [tokenizer(bare)["input_ids"] + stop]),
                               whole.encode([""], [tokenizer(bare)["input_ids"] + stop]))
    short = PolicyEmbedder(model, text_of, max_tokens=len(inside) - 1, part="reasoning")
    assert short.cut([text, text[:10]], [ids, ids[:10]]) == [True, False] and embedder.cut([text], [ids]) == [False]
    torch.testing.assert_close(short.encode([text], [ids]), whole.encode([""], [inside[:-1]]))


# ------------------------------------------------------------------------------------------------ in a run


@pytest.mark.exact
def test_a_run_embeds_what_the_sampler_drew_with_the_weights_it_drew_with(tmp_path, monkeypatch):
    """Both steps: tokens as sampled, the policy as the step began, and similarity and cuts in the records."""
    drawn, embedded, generate, encode = [], [], Sampler.generate, PolicyEmbedder.encode
    monkeypatch.setattr(Sampler, "generate",
                        lambda self, *arguments: drawn.append(generate(self, *arguments)) or drawn[-1])
    monkeypatch.setattr(PolicyEmbedder, "encode",
                        lambda self, *arguments: embedded.append((arguments, encode(self, *arguments)))
                        or embedded[-1][1])
    run(tmp_path / "r", PROBLEMS, "dra.embedder=policy", "dra.text=reasoning", "dra.max_tokens=20", "run.steps=2",
        "run.save_every=1", "learner.lr=1e-2")
    monkeypatch.undo()
    policies = ["tiny/policy", tmp_path / "r" / "checkpoints" / "step-000001" / "policy"]
    for step, (groups, ((texts, tokens), vectors), path) in enumerate(zip(drawn, embedded, policies, strict=True), 1):
        assert tokens == [completion.tokens for group in groups for completion in group]
        again = PolicyEmbedder(
            Transformer.from_pretrained(path),
            lambda ids: decode(load_tokenizer("tiny/policy"), [ids], [0])[0],
            20,
            "reasoning",
        )
        torch.testing.assert_close(vectors, again.encode(texts, tokens), rtol=0, atol=1e-4)
        found = [record for record in records(tmp_path / "r" / "samples.jsonl") if record["step"] == step]
        assert [completion["cut"] for record in found for completion in record["completions"]] == again.cut(
            texts, tokens)
        apart = ~torch.eye(3, dtype=torch.bool)
        for record, group in zip(found, cosine_similarity(vectors.view(3, 3, -1)), strict=True):
            assert record["similarity"] == pytest.approx(group[apart].mean().item(), abs=1e-6)
    figures = [record for record in records(tmp_path / "r" / "metrics.jsonl") if record["kind"] == "train"]
    cut = sum(sum(again.cut(*arguments)) for arguments, _ in embedded)
    assert sum(record["embed_cut"] for record in figures) == cut > 0
    assert (
        embedded[0][1]
        - PolicyEmbedder(Transformer.from_pretrained(policies[1]), again.decode, 20, "reasoning").encode(
            *embedded[0][0]
        )
    ).abs().max() > 1e-2


def test_a_run_refuses_an_embedder_that_reads_less_than_its_completions(modernbert, tmp_path):
    handlers = [(s, signal.getsignal(s)) for s in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(ValueError, match="reads 64 tokens, fewer than sampler.max_new_tokens = 65"):
        run(tmp_path / "r", PROBLEMS, f"dra.embedder={modernbert[1]}", "sampler.max_new_tokens=65")
    for s, handler in handlers:
        signal.signal(s, handler)
