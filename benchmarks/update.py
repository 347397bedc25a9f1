"""Seconds and memory of one update alone (forward, backward, optimizer) of ours and of TRL's, on the same completions.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/update.py [--workloads short ...] [--rounds 3] [--threads 2]

The geometry of SmolLM2-135M or of tiny/policy with random completions, so nothing has to be fetched. Both sides get the
same weights, prompts, completions and advantages, and compute the GRPO loss without KL term, gradients clipped at 1 and
one step of AdamW over all rows; loss and gradient norm are printed and must agree. TRL's side is its own
`GRPOTrainer._compute_loss` under its own autocast, all rows in one micro-batch ("TRL") or a group at a time ("TRL,
accumulating"); ours plans its micro-batches by `learner.micro_batch_tokens`, here 16,384. fp32, or fp32 weights and
moments with products in bf16. Lengths are drawn evenly between two bounds, or all equal ("-equal").

Contestants are processes that take turns (rounds.py); medians over rounds after one that warms up. Processor seconds,
those of all threads, move less with what else runs. FLOP/s count 6 per parameter of a product and padded or distinct
token, and are shown as a share of what a product of 2,048^3 reaches in the same process.
"""
import json
import statistics
import sys
import tempfile
import time
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path

import numpy as np
import torch
import transformers

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))                           # before this folder, whose learner.py is another one

from benchmarks.rounds import Child, arguments, peak_mib, play, ratio  # noqa: E402
from benchmarks.sampler import SMOLLM2  # noqa: E402
from learner import Learner, LearnerConfig, Row  # noqa: E402
from model import ModelConfig  # noqa: E402
from ranks import leave, start_ranks  # noqa: E402
from sampler import Completion  # noqa: E402

TINY = None                                             # tiny/policy, with its weights
LR, NEW = 1e-6, 160
WORKLOADS = {                                           # geometry, dtype, prompts, group, prompt tokens, completions
    "short": (SMOLLM2, "float32", 4, 8, 40, (16, 48)), "short-equal": (SMOLLM2, "float32", 4, 8, 40, (32, 32)),
    "short-bf16": (SMOLLM2, "bfloat16", 4, 8, 40, (16, 48)),
    "long": (SMOLLM2, "float32", 4, 8, 120, (40, 160)), "long-equal": (SMOLLM2, "float32", 4, 8, 120, (100, 100)),
    "names-bf16": (SMOLLM2, "bfloat16", 8, 8, 25, (3, 3)), "names": (SMOLLM2, "float32", 8, 8, 25, (3, 3)),
    "tiny": (TINY, "float32", 16, 8, 24, (10, 40)), "tiny-equal": (TINY, "float32", 16, 8, 24, (25, 25)),
}


def build(name: str, folder: Path) -> str:
    """The policy's folder."""
    geometry = WORKLOADS[name][0]
    if geometry is TINY:
        return str(ROOT / "tiny/policy")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**geometry, max_position_embeddings=2048)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(ROOT / "tiny/policy").save_pretrained(folder)
    return str(folder)


def rows_of(name: str, vocab: int) -> list[Row]:
    """The completions of a step, group by group."""
    _, _, P, G, prompt_tokens, (shortest, longest) = WORKLOADS[name]
    rng, rows = np.random.default_rng(0), []
    for _ in range(P):
        prompt = rng.integers(vocab, size=prompt_tokens).tolist()
        for _ in range(G):
            n = int(rng.integers(shortest, longest + 1))
            rows.append(Row(prompt, Completion(rng.integers(vocab, size=n).tolist(), [-1.0] * n, "stop"),
                            float(rng.normal())))
    return rows


def ours(name: str, folder: str):
    dtype = WORKLOADS[name][1]
    _, _, device = start_ranks(dtype)
    vocab = json.loads(Path(folder, "config.json").read_text())["vocab_size"]
    learner = Learner(ModelConfig(folder, dtype), LearnerConfig(lr=LR), folder, device, vocab, 1.0, NEW)
    rows = rows_of(name, vocab)
    # each prompt once, and of a completion all tokens but the last, which predicts nothing
    tokens = sum(len(row.completion.tokens) - 1 for row in rows) + len(rows[0].prompt) * WORKLOADS[name][2]

    def run() -> dict:
        figures = learner.update(rows, LR)
        return {"loss": figures["loss"], "norm": figures["grad_norm"], "tokens": tokens,
                "parts": {key: value for key, value in figures.items() if key.endswith("_s")}}
    return run


def trl(name: str, folder: str, groups: int = 0):
    """`groups` of them in a micro-batch, 0 for all."""
    import datasets
    from trl import GRPOConfig, GRPOTrainer

    _, dtype, P, G, prompt_tokens, _ = WORKLOADS[name]
    size = (groups or P) * G
    args = GRPOConfig(
        output_dir=str(Path(tempfile.mkdtemp())), use_cpu=True, bf16=dtype == "bfloat16", num_generations=G,
        per_device_train_batch_size=size, gradient_accumulation_steps=P * G // size, gradient_checkpointing=False,
        max_completion_length=NEW, beta=0.0, loss_type="grpo", learning_rate=LR, lr_scheduler_type="constant",
        weight_decay=0.0, max_grad_norm=1.0, max_steps=10**6, report_to="none", save_strategy="no",
        logging_strategy="no", disable_tqdm=True, dataloader_pin_memory=False)
    data = datasets.Dataset.from_list([{"prompt": "a"}] * P * G)
    trainer = GRPOTrainer(folder, [lambda completions, **_: [0.0] * len(completions)], args, data)
    model, steps = trainer.model.train(), P * G // size
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = steps
    rows = rows_of(name, model.config.vocab_size)
    batches = [inputs_of(rows[start : start + size]) for start in range(0, P * G, size)]

    def run() -> dict:
        loss = 0.0
        for batch in batches:
            with trainer.accelerator.autocast():
                part = trainer._compute_loss(model, batch)
            part.backward()
            loss += part.item()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
        return {"loss": loss, "norm": norm.item(),
                "tokens": sum(batch["prompt_ids"].numel() + batch["completion_ids"].numel() for batch in batches)}
    return run


def inputs_of(rows: list[Row]) -> dict:
    """A micro-batch as TRL's trainer prepares it: completions right-padded."""
    completions = [torch.tensor(row.completion.tokens) for row in rows]
    ids = torch.nn.utils.rnn.pad_sequence(completions, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(tokens) for tokens in completions], batch_first=True)
    prompts = torch.tensor([row.prompt for row in rows])
    return {"prompt_ids": prompts, "prompt_mask": torch.ones_like(prompts), "completion_ids": ids,
            "completion_mask": mask, "advantages": torch.tensor([row.advantage for row in rows]),
            "num_items_in_batch": mask.sum()}


CONTESTANTS = {"ours": ours, "TRL": trl, "TRL, accumulating": partial(trl, groups=1)}


def product_rate(dtype: torch.dtype) -> float:
    """FLOP/s of a product of 2,048^3, the best of five."""
    left, right = (torch.randn(2048, 2048).to(dtype) for _ in range(2))
    times = []
    for _ in range(6):
        start = time.perf_counter()
        left @ right
        times.append(time.perf_counter() - start)
    return 2 * 2048**3 / min(times)


def serve(contestant: str, name: str, folder: str) -> None:
    with redirect_stdout(sys.stderr):                   # stdout belongs to the replies
        run = CONTESTANTS[contestant](name, folder)
        rate = product_rate(torch.bfloat16 if name.endswith("bf16") else torch.float32)
    for _ in sys.stdin:
        start, busy = time.perf_counter(), time.process_time()
        with redirect_stdout(sys.stderr):
            figures = run()
        print(json.dumps(figures | {"seconds": time.perf_counter() - start, "cpu": time.process_time() - busy,
                                    "peak": peak_mib(), "rate": rate}), flush=True)
    leave(0)


def main() -> None:
    args = arguments(__doc__, WORKLOADS, CONTESTANTS)
    torch.set_num_threads(args.threads)
    transformers.utils.logging.disable_progress_bar()
    if args.serve:
        serve(args.serve, args.workloads[0], str(args.folder))
        return
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {args.threads} threads, bf16 "
          f"instructions: {torch.ops.mkldnn._is_mkldnn_bf16_supported()}")
    for name in args.workloads:
        with tempfile.TemporaryDirectory() as folder:
            policy = build(name, Path(folder))
            weights = sum(p.numel() for p in transformers.AutoModelForCausalLM.from_pretrained(policy).parameters())
            _, _, P, G, prompt, (shortest, longest) = WORKLOADS[name]
            print(f"\n{name}: {P} prompts x {G}, prompt {prompt}, completions {shortest}-{longest}", flush=True)
            command = [sys.executable, __file__, "--workloads", name, "--folder", policy, "--threads",
                       str(args.threads)]
            children = {contestant: Child([*command, "--serve", contestant], Path(folder) / f"{contestant}.log")
                        for contestant in args.contestants}
            rounds = play(children, args.rounds)
            for contestant in args.contestants:
                show(contestant, rounds, args.contestants[0], weights)


def show(contestant: str, rounds: list[dict], first: str, weights: int) -> None:
    runs = [round_[contestant] for round_ in rounds]
    seconds, cpu = ([run[key] for run in runs] for key in ("seconds", "cpu"))
    last = runs[-1]
    share = 6 * weights * last["tokens"] / statistics.median(seconds) / last["rate"]
    print(f"   {contestant:<20}{statistics.median(seconds):>7.2f} s ({min(seconds):.2f}..{max(seconds):.2f}), "
          f"{statistics.median(cpu):.2f} of processor  time / {first}: {ratio(rounds, contestant, first):.2f}, "
          f"processor {ratio(rounds, contestant, first, 'cpu'):.2f}  {last['tokens']} tokens, {share:.0%} of a "
          f"product's {last['rate'] / 1e9:.0f} GFLOP/s  peak {last['peak']:.0f} MiB  loss {runs[0]['loss']:.4e}, "
          f"norm {runs[0]['norm']:.4f}", flush=True)
    if "parts" in last:
        print("      " + "  ".join(f"{key.removesuffix('_s')} {value:.3f}" for key, value in last["parts"].items()))


if __name__ == "__main__":
    main()
