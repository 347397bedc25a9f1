"""How long a run waits for a large data file, and whether a long evaluation needs more memory the longer it takes.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/evaluation.py [--data FILE.jsonl] [--rows 1000000] [--problems 24] \\
        [--tokens 2048] [--threads 2]

Rows: those of --data over and over fill a file of --rows lines, which is loaded, and the rows whose prompt has at most
512 tokens are found. Without --data they are made up: problems of 20 to 2,000 characters (median 225), a twentieth with
a letter that is not ASCII, a quarter with a gold that is no number.

Memory: a random policy of 31M parameters answers --problems problems twice each, four completions at a time, which
never stop before --tokens tokens; after each call of the sampler the resident memory is printed. --rows 0 or --problems
0 leaves out the one or the other.
"""
import argparse
import itertools
import json
import random
import sys
import tempfile
import time
from pathlib import Path

import torch
import transformers

sys.path.insert(0, str(Path(__file__).parent.parent))

from data import DataConfig, load_problems  # noqa: E402
from grader import Grader  # noqa: E402
from model import Transformer  # noqa: E402
from eval_samples import EvalConfig, eval_sampler, sample_groups  # noqa: E402
from prompts import load_tokenizer, short_enough  # noqa: E402

WORDS, PROMPT_LIMIT = "find the number of all positive integers such that sum product is prime and let be".split(), 512


def made_up(count: int) -> list[str]:
    pick, lines = random.Random(0), []
    for i in range(count):
        size = min(max(int(pick.lognormvariate(5.4, 0.55)), 20), 2000)
        words = [pick.choice(WORDS) if pick.random() < 0.8 else f"${pick.randrange(999)}x^2$" for _ in range(size // 6)]
        text = ("é" if i % 20 == 0 else "") + " ".join(words)
        answer = f"\\frac{{{i % 97}}}{{{i % 89 + 2}}}" if i % 4 == 0 else str(i % 1000)
        lines.append(json.dumps({"problem": text, "answer": answer}) + "\n")
    return lines


def rows(lines: list[str], count: int, folder: Path) -> None:
    path = folder / "rows.jsonl"
    with open(path, "w") as file:
        file.writelines(itertools.islice(itertools.cycle(lines), count))
    start = time.perf_counter()
    problems = load_problems(str(path), DataConfig())
    loaded = time.perf_counter()
    tokenizer = load_tokenizer("tiny/policy")
    begin = time.perf_counter()
    fitting = short_enough(tokenizer, problems, DataConfig(), PROMPT_LIMIT)
    print(f"{len(problems)} rows, {path.stat().st_size / 1e6:.0f} MB: loaded and checked in {loaded - start:.1f} s; "
          f"{len(problems) - len(fitting)} prompts of more than {PROMPT_LIMIT} tokens found in "
          f"{time.perf_counter() - begin:.1f} s; resident {resident_gb():.2f} GB", flush=True)


def resident_gb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e9


def memory(problems: int, tokens: int, folder: Path) -> None:
    torch.manual_seed(0)
    config = transformers.Qwen2Config(hidden_size=512, intermediate_size=1408, num_hidden_layers=8,
                                      num_attention_heads=8, num_key_value_heads=2, vocab_size=8192,
                                      max_position_embeddings=32768, tie_word_embeddings=False, bos_token_id=None,
                                      eos_token_id=None, pad_token_id=0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer, model = load_tokenizer("tiny/policy"), Transformer.from_pretrained(folder)
    model.n_tokens = len(tokenizer)
    settings = EvalConfig(samples=2, max_new_tokens=tokens, temperature=1.0, slots=4)
    sampler = eval_sampler(model, tokenizer, settings, DataConfig())
    sampler.is_stop[:] = False
    asked = [{"id": i, "problem": f"{i}+38", "answer": str(i + 38)} for i in range(problems)]
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.0f}M parameters, resident {resident_gb():.3f} GB",
          flush=True)
    with Grader(2) as grader:
        start, done = time.perf_counter(), 0
        for groups in sample_groups(sampler, tokenizer, asked, DataConfig(), settings, grader, progress=False):
            lengths = [sample["length"] for group in groups for sample in group]
            done += len(lengths)
            assert set(lengths) == {tokens}
            print(f"{done} completions of {tokens} tokens after {time.perf_counter() - start:.0f} s: resident "
                  f"{resident_gb():.3f} GB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--problems", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        if args.rows:
            lines = args.data.read_text(encoding="utf-8").splitlines(keepends=True) if args.data else None
            rows(lines or made_up(min(args.rows, 20_000)), args.rows, Path(folder))
        if args.problems:
            memory(args.problems, args.tokens, Path(folder))


if __name__ == "__main__":
    main()
