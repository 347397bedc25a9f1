"""Makes everything in tiny/ from scratch: tokenizer, problems, embedder and the supervised policy the recipes train.

    python -m tiny.make [--out tiny]        about 4 minutes on 2 cores

The policy (Qwen2 architecture, see GEOMETRY) is trained on right solutions only, and stopped while it still errs, so
that reinforcement has something to do. At the end the script checks what the recipes rely on and fails if it does not
hold: accuracy in 0.6..0.8 and at least 2.5 effective strategies of 4 per problem on the test problems (T = 1, 32
samples each), and a mean cosine of at least 0.6 between different strategies of one problem.

The embedder is a sentence-transformers StaticEmbedding with one axis per token, so its cosine is that of token counts:
it sees text only, and nothing in it is fitted to the strategies.
"""
import argparse
import itertools
import random
import time
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from data import DataConfig
from eval import evaluate, format_record
from eval_samples import EvalConfig, OwnGrader
from files import write_jsonl
from grader import Grader
from model import Transformer, rope_frequencies
from prompts import load_tokenizer, prompt_tokens
from reward import cosine_similarity
from tiny.task import STRATEGIES, problems, solution

SEED = 0
TEST, TRAIN = 200, 4000
STEPS, BATCH, LR = 480, 128, 3e-3
GEOMETRY = dict(hidden_size=96, intermediate_size=256, num_hidden_layers=4, num_attention_heads=3,
                num_key_value_heads=1)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE, every digit a token of its own (with the space before it, if there is one)."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(r" ?\\boxed\{| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]|\s+"), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=512, special_tokens=["<|end|>", "<|user|>", "<|assistant|>", "<|system|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>",
                                   chat_template=CHAT_TEMPLATE, clean_up_tokenization_spaces=False)


def make_policy(vocab: int) -> Transformer:
    """A freshly initialised policy; the vocabulary is padded to a multiple of 64 as in released models."""
    model = Transformer({
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", **GEOMETRY,
        "vocab_size": -vocab % 64 + vocab, "hidden_act": "silu",
        "max_position_embeddings": 256, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": True,
        "bos_token_id": None, "eos_token_id": 0, "pad_token_id": 0, "use_sliding_window": False,
    }, generation_config={"eos_token_id": 0, "pad_token_id": 0})
    model.inv_freq = rope_frequencies(model.g)
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            torch.nn.init.zeros_(parameter) if name.endswith("bias") else torch.nn.init.normal_(parameter, std=0.05)
    model.n_tokens = vocab
    return model


def supervise(model: Transformer, examples: list[tuple[list[int], list[int]]], steps: int, size: int) -> None:
    """Next-token training on (prompt, completion) pairs, `size` in a step, linearly decaying rate."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0, fused=True)
    start = time.time()
    for step in range(steps):
        batch = random.sample(examples, size)
        width = max(len(prompt) + len(completion) for prompt, completion in batch)
        tokens = torch.zeros(size, width, dtype=torch.long)
        mask = torch.zeros(size, width, dtype=torch.bool)
        for i, (prompt, completion) in enumerate(batch):
            tokens[i, : len(prompt) + len(completion)] = torch.tensor(prompt + completion)
            mask[i, len(prompt) : len(prompt) + len(completion)] = True
        logprobs, _ = model.token_logprobs(tokens, mask, temperature=1.0)
        loss = -logprobs.sum() / mask.sum()
        optimizer.param_groups[0]["lr"] = LR * min(1, step / 50) * (1 - step / steps)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 100 == 0:
            print(f"step {step}/{steps} loss {loss.item():.4f} {time.time() - start:.0f}s", flush=True)


def out_folder(description: str, default: str) -> Path:
    """The folder of --out; sets the seeds and threads that make what is written there the same every time."""
    parser = argparse.ArgumentParser(description=description.split("\n\n")[0])
    parser.add_argument("--out", default=default, type=Path)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(2)                            # sums are split by thread: other numbers give other last digits
    torch.manual_seed(SEED)
    random.seed(SEED)
    return out


def build(out: Path, test: list[dict], train: list[dict], solved: list[tuple[dict, str]], steps: int,
          size: int) -> None:
    """Writes problems, tokenizer, embedder and a policy supervised on `solved`, pairs of a problem and a solution."""
    write_jsonl(out / "test.jsonl", test)
    write_jsonl(out / "train.jsonl", train)
    tokenizer = make_tokenizer([row["problem"] for row in train] + [text for _, text in solved])
    tokenizer.save_pretrained(out / "policy")
    settings = out / "policy" / "tokenizer_config.json"     # with the name that transformers 4 knows too
    settings.write_text(settings.read_text().replace("TokenizersBackend", "PreTrainedTokenizerFast"))
    examples = [(prompt_tokens(tokenizer, row["problem"], DataConfig()),
                 tokenizer(text)["input_ids"] + [tokenizer.eos_token_id])
                for row, text in solved]
    print(f"{len(tokenizer)} tokens; completions of {sum(len(c) for _, c in examples) / len(examples):.1f} tokens on "
          f"average, {max(len(c) for _, c in examples)} at most")

    embedder = SentenceTransformer(
        modules=[StaticEmbedding(tokenizer.backend_tokenizer, torch.eye(len(tokenizer)).numpy())])
    embedder.save(str(out / "embedder"), create_model_card=False)

    model = make_policy(len(tokenizer))
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters")
    supervise(model, examples, steps, size)
    model.save_pretrained(out / "policy")


def main() -> None:
    out = out_folder(__doc__, "tiny")
    rows = problems(SEED)
    test, train = rows[:TEST], rows[TEST : TEST + TRAIN]
    solved = [(row, solution(name, *map(int, row["problem"].split("+")))) for row in train
              for name in random.choices(list(STRATEGIES), list(STRATEGIES.values()), k=4)]
    build(out, test, train, solved, STEPS, BATCH)
    check(out, [[solution(name, *map(int, row["problem"].split("+"))) for name in STRATEGIES] for row in test])


def evaluation(out: Path, label: str, grader: Grader | OwnGrader) -> dict:
    """The record of the policy in `out` on its test problems, printed; and the size of the folder, at most 8 MB."""
    tokenizer = load_tokenizer(out / "policy")
    model = Transformer.from_pretrained(out / "policy")
    model.n_tokens = len(tokenizer)
    config = EvalConfig(samples=32, max_new_tokens=64, temperature=1.0, top_p=1.0, label=label, seed=SEED)
    record, _ = evaluate(model, tokenizer, str(out / "test.jsonl"), DataConfig(), config, grader)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    print(format_record(record), record["strategies"], f"{out}: {size / 2**20:.1f} MB", sep="\n")
    assert size < 8 * 2**20, size
    return record


def check(out: Path, texts: list[list[str]]) -> None:
    """What the recipes rely on, measured on what was written; `texts`: each problem's solutions, one per strategy."""
    with Grader() as grader:
        record = evaluation(out, "tiny/task.py:strategy", grader)
    vectors = SentenceTransformer(str(out / "embedder")).encode(sum(texts, []), convert_to_tensor=True)
    similarity = cosine_similarity(vectors.view(len(texts), len(STRATEGIES), -1))
    between = torch.stack([similarity[:, i, j] for i, j in itertools.combinations(range(len(STRATEGIES)), 2)])
    print(f"cosine between different strategies of one problem: mean {between.mean():.3f}, range "
          f"{between.min():.3f}..{between.max():.3f}")
    assert 0.6 <= record["accuracy"] <= 0.8, record["accuracy"]
    assert record["effective_strategies"] >= 2.5, record["effective_strategies"]
    assert between.mean() >= 0.6, between.mean()


if __name__ == "__main__":
    main()
