"""Seconds and memory of one full training step (sample, grade, embed, update) of ours and of TRL's GRPOTrainer.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/learner.py [--workloads tiny-fp32 ...] [--rounds 3] [--threads 2]

Each contestant is a process of its own that runs its own training loop, ours `dra_grpo.train` and TRL's
`GRPOTrainer.train`, held after every step until it is asked for the next one; so they take turns, and none runs on
another's left-over threads or memory. A step counts from one optimizer step to the next, with everything a run does in
between. Medians over rounds; the first step of each warms up and does not count. CPU seconds, those of all threads,
are printed too, because other work on the machine moves them less. Peak memory is each process's largest resident set,
model and libraries included (Linux).

The same on both sides: policy folder, prompts and chat template, group size, completion limit, temperature 1, GRPO loss
without KL term, rewards divided by their standard deviation, learning rate (1e-6, so that lengths do not drift), AdamW,
gradient clipping at 1, one optimizer step on all rows, fp32, or fp32 weights and moments with products in bf16
(autocast in TRL), and the grading of every completion by our grader. Tokens trained per step are printed for each. Only
ours embeds completions and adjusts rewards, and only ours writes metrics and samples; TRL's logging, reports and
checkpoints are off.

TRL generates with transformers (dynamic cache) and trains, by its own options,
    "TRL"                   all rows in one batch, activations saved: its fastest
    "TRL, accumulating"     one group at a time with gradient accumulation: its way to save memory
    "TRL, checkpointing"    all rows in one batch, activations recomputed: its default
"""
import json
import random
import statistics
import string
import sys
import tempfile
import time
from contextlib import redirect_stdout
from pathlib import Path

import torch
import transformers

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))                           # before this folder, whose sampler.py is another one

from benchmarks.rounds import Child, Round, arguments, peak_mib, play, ratio  # noqa: E402
from benchmarks.sampler import SMALL as SMALL_GEOMETRY  # noqa: E402

TINY = dict(policy=str(ROOT / "tiny/policy"), prompts=16, group=8, cap=64, rewards={"accuracy": 1.0})
# random weights never solve a problem, so a second reward tells the completions apart
SMALL = dict(policy=None, prompts=8, group=6, cap=256, rewards={"accuracy": 1.0, f"{__file__}:vowels": 1.0})
WORKLOADS = {"tiny-fp32": (TINY, "float32"), "tiny-bf16": (TINY, "bfloat16"), "small-fp32": (SMALL, "float32"),
             "small-bf16": (SMALL, "bfloat16")}
PROMPT_TOKENS, LR = 64, 1e-6


def vowels(texts: list[str], **_) -> list[float]:
    return [sum(letter in "aeiou" for letter in text) / max(len(text), 1) for text in texts]


def build(name: str, folder: Path) -> None:
    """The policy, the problems and an embedder of the published size; the small policy never draws its stop token."""
    work, _ = WORKLOADS[name]
    tokenizer = transformers.AutoTokenizer.from_pretrained(ROOT / "tiny/policy")
    if work["policy"]:
        problems = (ROOT / "tiny/train.jsonl").read_text(encoding="utf-8").splitlines()[: work["prompts"]]
    else:
        generator = random.Random(0)
        words = {" " + "".join(generator.choices(string.ascii_lowercase, k=4))
                 for _ in range(2 * SMALL_GEOMETRY["vocab_size"])}
        words = sorted(words)[: SMALL_GEOMETRY["vocab_size"] - len(tokenizer)]
        tokenizer.add_tokens(words)
        torch.manual_seed(0)
        config = transformers.Qwen2Config(**SMALL_GEOMETRY, max_position_embeddings=1024, tie_word_embeddings=False,
                                          bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
                                          pad_token_id=tokenizer.pad_token_id)
        model = transformers.AutoModelForCausalLM.from_config(config)
        with torch.no_grad():                           # a positive channel that only the stop token's logit reads
            model.model.embed_tokens.weight[:, 0] = 1
            model.lm_head.weight[:, 0] = 0
            model.lm_head.weight[tokenizer.eos_token_id, 0] = -100
        model.save_pretrained(folder / "policy")
        tokenizer.save_pretrained(folder / "policy")
        markers = 2                                     # the chat template's
        problems = [json.dumps({"problem": "".join(generator.choices(words, k=PROMPT_TOKENS - markers)), "answer": "1"})
                    for _ in range(work["prompts"])]
    (folder / "problems.jsonl").write_text("\n".join(problems) + "\n", encoding="utf-8")
    # ibm-granite/granite-embedding-small-english-r2: 47M parameters
    config = transformers.ModernBertConfig(vocab_size=50368, hidden_size=384, intermediate_size=1536,
                                           num_hidden_layers=12, num_attention_heads=12,
                                           pad_token_id=tokenizer.pad_token_id)
    transformers.AutoModel.from_config(config).save_pretrained(folder / "embedder")
    tokenizer.save_pretrained(folder / "embedder")


class Turns:
    """A child's side: its training loop reports each step and is held until it is asked for the next."""

    def wait(self) -> None:
        if not sys.stdin.readline():
            raise SystemExit
        self.start, self.cpu = time.perf_counter(), time.process_time()

    def step(self, prompt_tokens: int, tokens: int, parts: dict[str, float]) -> None:
        seconds, cpu = time.perf_counter() - self.start, time.process_time() - self.cpu
        print(json.dumps({"seconds": seconds, "cpu": cpu, "prompt_tokens": prompt_tokens, "tokens": tokens,
                          "parts": parts, "peak": peak_mib()}), file=sys.__stdout__, flush=True)
        self.wait()


def ours(name: str, folder: Path, turns: Turns, **overrides) -> None:
    import dra_grpo
    from config import load, toml_value
    from data import load_problems
    from prompts import load_tokenizer, prompt_tokens

    work, dtype = WORKLOADS[name]
    policy = work["policy"] or str(folder / "policy")
    settings = {"model.path": policy, "model.dtype": dtype, "data.train": str(folder / "problems.jsonl"),
                "data.prompts_per_step": work["prompts"], "data.max_prompt_tokens": PROMPT_TOKENS,
                "sampler.group_size": work["group"], "sampler.max_new_tokens": work["cap"],
                "reward.functions": work["rewards"], "learner.lr": LR, "learner.schedule": "constant",
                "eval.benchmarks": [],
                "run.dir": str(folder / "run"), "run.steps": 10**6, "run.save_every": 10**6, **overrides}
    config = load(dra_grpo.Config, ROOT / "configs/tiny.toml",
                  [f"{key}={toml_value(value)}" for key, value in settings.items()])
    tokenizer = load_tokenizer(policy)
    prompts = sum(len(prompt_tokens(tokenizer, row, config.data))
                  for row in load_problems(config.data.train, config.data))

    def step_line(record: dict, steps: int) -> str:
        """Called by the training loop when a step is done and logged."""
        turns.step(prompts * work["group"], record["tokens"],
                   {key: value for key, value in record.items() if key.endswith("_s") and key != "tokens_per_s"})
        return ""

    dra_grpo.step_line = step_line
    turns.wait()
    dra_grpo.train(config)


def trl(name: str, folder: Path, turns: Turns, **settings) -> None:
    import datasets
    from trl import GRPOConfig, GRPOTrainer

    from grader import Grader

    work, dtype = WORKLOADS[name]
    policy = work["policy"] or str(folder / "policy")
    rows = [json.loads(line) for line in (folder / "problems.jsonl").read_text(encoding="utf-8").splitlines()]
    data = datasets.Dataset.from_list(
        [{"prompt": [{"role": "user", "content": row["problem"]}], "answer": row["answer"]} for row in rows])
    grader = Grader(2, 5.0)
    seen = {"tokens": 0, "prompt_tokens": 0}

    def accuracy(completions, completion_ids, answer, **_) -> list[float]:
        seen["tokens"] = sum(map(len, completion_ids))
        return [float(grade.correct)
                for grade in grader.grade_batch([completion[0]["content"] for completion in completions], answer)]

    def vowel_share(completions, **_) -> list[float]:
        return vowels([completion[0]["content"] for completion in completions])

    class Hold(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            total, seen["before"] = state.num_input_tokens_seen - seen.get("before", 0), state.num_input_tokens_seen
            turns.step(total - seen["tokens"], seen["tokens"], {})

    all_rows = work["prompts"] * work["group"]
    settings = {"per_device_train_batch_size": all_rows, "gradient_checkpointing": False, **settings}
    settings["gradient_accumulation_steps"] = all_rows // settings["per_device_train_batch_size"]
    args = GRPOConfig(
        output_dir=str(folder / "trl"), use_cpu=True, bf16=dtype == "bfloat16", num_generations=work["group"],
        max_completion_length=work["cap"], temperature=1.0, beta=0.0, loss_type="grpo", scale_rewards="group",
        learning_rate=LR, lr_scheduler_type="constant", weight_decay=0.0, max_grad_norm=1.0, max_steps=10**6,
        report_to="none", save_strategy="no", logging_strategy="no", disable_tqdm=True,
        dataloader_pin_memory=False, **settings)
    trainer = GRPOTrainer(policy, [accuracy, vowel_share][: len(work["rewards"])], args, data, callbacks=[Hold()])
    turns.wait()
    trainer.train()


CONTESTANTS = {
    "ours": ours,
    "ours, plain GRPO": lambda *a: ours(*a, **{"dra.enabled": False}),
    "ours, 47M embedder": lambda name, folder, turns: ours(
        name, folder, turns, **{"dra.embedder": str(folder / "embedder")}),
    "TRL": trl,
    "TRL, accumulating": lambda name, *a: trl(name, *a, per_device_train_batch_size=WORKLOADS[name][0]["group"]),
    "TRL, checkpointing": lambda *a: trl(*a, gradient_checkpointing=True),
}


def child(contestant: str, name: str, folder: Path, threads: int) -> Child:
    """One contestant's process, with a folder of its own that shares policy, embedder and problems."""
    own = folder / contestant
    own.mkdir()
    for shared in ("policy", "embedder", "problems.jsonl"):
        if (folder / shared).exists():
            (own / shared).symlink_to(folder / shared)
    return Child([sys.executable, __file__, "--serve", contestant, "--workloads", name, "--folder", str(own),
                  "--threads", str(threads)], own / "log", cwd=ROOT)


def serve(contestant: str, name: str, folder: Path) -> None:
    from ranks import leave

    try:
        with redirect_stdout(sys.stderr):               # stdout belongs to the replies
            CONTESTANTS[contestant](name, folder, Turns())
    except SystemExit:
        leave(0)


def show(contestant: str, rounds: list[Round], first: str) -> None:
    """One contestant's medians, and below them where its step's time went, as its own metrics say."""
    runs = [round_[contestant] for round_ in rounds]
    times = [run["seconds"] for run in runs]
    cpu, tokens = statistics.median(run["cpu"] for run in runs), statistics.mean(run["tokens"] for run in runs)
    ratios = f"{ratio(rounds, contestant, first):.2f}, CPU {ratio(rounds, contestant, first, 'cpu'):.2f}"
    print(f"   {contestant:<20}{statistics.median(times):>8.2f} s a step ({min(times):.2f}..{max(times):.2f}), "
          f"{cpu:.2f} of CPU  time / {first}: {ratios}  {runs[0]['prompt_tokens']} + {tokens:.0f} tokens  "
          f"peak {runs[-1]['peak']:.0f} MiB", flush=True)
    parts = {key: statistics.median(run["parts"][key] for run in runs) for key in runs[0]["parts"]}
    if parts:
        print("      " + "  ".join(f"{key.removesuffix('_s')} {value:.3f}" for key, value in parts.items()))
        print("      DRA (embedding, similarity, SMI, adjustment): "
              f"{(parts['embed_s'] + parts['dra_s']) / statistics.median(times):.2%} of the step", flush=True)


def main() -> None:
    args = arguments(__doc__, WORKLOADS, CONTESTANTS)
    torch.set_num_threads(args.threads)
    transformers.utils.logging.disable_progress_bar()
    if args.serve:
        serve(args.serve, args.workloads[0], args.folder)
        return
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {args.threads} threads")
    for name in args.workloads:
        with tempfile.TemporaryDirectory() as folder:
            build(name, Path(folder))
            work, _ = WORKLOADS[name]
            print(f"\n{name}: {work['prompts']} prompts x {work['group']} completions of at most {work['cap']} tokens",
                  flush=True)
            children = {contestant: child(contestant, name, Path(folder), args.threads)
                        for contestant in args.contestants}
            rounds = play(children, args.rounds)
            for contestant in children:
                show(contestant, rounds, args.contestants[0])


if __name__ == "__main__":
    main()
