"""Trains a policy with GRPO, Dr. GRPO or DAPO's loss, with or without Diversity-aware Reward Adjustment (DRA).

    torchrun dra_grpo.py --config configs/tiny.toml [section.key=value ...]
    python dra_grpo.py --help                               every key with type, default and a sentence

One step: prompts -> G completions each (sampler.py) -> grades, embeddings, SMI, adjusted rewards, advantages (reward.py) ->
clipped policy gradient with optional KL penalty (learner.py) -> sampler.load_weights. Data order and random numbers are
functions of (seed, step, position), so whatever ends a run, the same command continues it as if it had never stopped.
"""
import os
import subprocess
import sys
import time
from contextlib import closing, nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import checkpoint
import files
import memory
from config import dump, import_function, load, parse_args
from data import load_benchmarks, load_problems, load_tokenizer, model_folder, opening, prompt_tokens, short_enough
from embedder import Embedder, PolicyEmbedder
from eval import format_record, summarize
from grader import Grader
from learner import Clock, Learner, Row, lr_at, rows_in_loss
from metrics import Trackers, before_and_after, group_figures, step_line
from model import DTYPES, Transformer, read_json
from ranks import Interrupted, Stop, full_weights, gather_over_ranks, is_first_rank, max_over_ranks, of_rank, run_main, start_ranks
from reward import Rewarder, Scores
from sampler import Completion, Sampler, stop_ids
from samples import eval_sampler, labeller, sample_problems, settings_of
from settings import Config, check, reward_functions

# P prompts, G completions each, N = P*G rows


def prompts_for_step(seed: int, step: int, rank: int, world: int, rows: int, per_step: int) -> list[tuple[int, int]]:
    """(position in the step's global list, data row) of this rank's prompts; a pure function, so there is no data state to save.

    Each epoch is a fresh permutation of the `rows` rows; rank r takes positions r, r + world, ...
    """
    epochs = {}
    pairs = []
    for position in range(rank, per_step, world):
        epoch, place = divmod(step * per_step + position, rows)
        if epoch not in epochs:
            epochs[epoch] = np.random.default_rng((seed, epoch)).permutation(rows)
        pairs.append((position, int(epochs[epoch][place])))
    return pairs


# ------------------------------------------------------------------------------------------------ the run


def run_record(config: Config, world: int, device: torch.device, step: int) -> dict:
    """What a reader of metrics.jsonl needs to know about the run."""
    try:
        git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True).stdout.strip() or None
    except FileNotFoundError:                           # no git on this machine
        git = None
    return {"kind": "run", "step": step, "config": asdict(config), "argv": sys.argv, "git": git, "torch": torch.__version__,
            "python": sys.version.split()[0], "world": world, "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")}


def sample_records(step: int, pairs: list[tuple[int, int]], rows: list[dict], completions: list[list[Completion]], texts: list[str], scores: Scores,
                   labels: list[str | None]) -> list[dict]:
    """One record per group for samples.jsonl."""
    G = scores.raw.shape[1]
    return [
        {"step": step, "position": position, "row": row, "id": problem["id"], "problem": problem["problem"], "answer": problem["answer"],
         "similarity": scores.similarity[p],
         "completions": [
            {"text": texts[p * G + g], "correct": scores.grades[p * G + g].correct, "reason": scores.grades[p * G + g].reason,
             "answer": scores.grades[p * G + g].answer, "length": len(completions[p][g].tokens), "finish": completions[p][g].finish,
             "rewards": {name: part[p, g].item() for name, part in scores.parts.items()}, "reward": scores.raw[p, g].item(),
             "cut": scores.cut[p * G + g], "smi": scores.smi[p, g].item(), "weight": scores.weight[p, g].item(), "adjusted": scores.adjusted[p, g].item(),
             "advantage": scores.advantage[p, g].item()} | ({"label": labels[p * G + g]} if labels else {})
            for g in range(G)]}
        for p, ((position, row), problem) in enumerate(zip(pairs, rows))
    ]


def train(config: Config) -> int:
    """The whole run; returns 0, or 128 + signal number after an interruption. Raises ValueError for what the user has to mend."""
    stop = Stop()
    try:
        check(config, int(os.environ.get("WORLD_SIZE", 1)))
        with files.lock(Path(config.run.dir)) if is_first_rank() else nullcontext():
            return train_until(config, stop)
    except Interrupted:                                 # outside the steps: nothing has changed since the last checkpoint
        print("interrupted", file=sys.stderr)
        return 128 + stop.signum
    except Exception as error:
        again = "run the same command again, it continues from the last checkpoint"
        if files.disk_is_full(error):
            raise ValueError(f"{of_rank()}run.dir = {config.run.dir!r}: no room left to write; make room and {again}") from error
        if isinstance(error, RuntimeError) and (gone := stop.ranks_gone()):     # its connections broke
            raise ValueError(f"{stop.doing}: rank {', '.join(map(str, gone))} has ended (killed, or out of memory); {again}") from error
        raise


def train_until(config: Config, stop: Stop) -> int:
    skipped: list[str] = []
    data = load_problems(config.data.train, config.data, skipped)
    benchmarks = load_benchmarks(config.eval.benchmarks, config.data, skipped)
    folder = model_folder(config.model)
    tokenizer = load_tokenizer(folder)
    kept = short_enough(tokenizer, data, config.data, config.data.max_prompt_tokens)
    if not kept:
        raise ValueError(f"data.train: all {len(data)} prompts exceed data.max_prompt_tokens = {config.data.max_prompt_tokens}")
    rank, world, device = start_ranks(config.model.dtype, config.learner.offload)
    first = rank == 0
    run_dir = Path(config.run.dir)
    if first:
        print(f"{len(kept)} training problems" + (f" ({len(data) - len(kept)} left out: prompt too long)" if len(kept) < len(data) else ""))
        if skipped:
            print(f"rows left out as unusable: {len(skipped)} ({skipped[0]})")

    dra, embedder = config.dra, None
    if dra.enabled and dra.embedder != "policy":        # before the policy, which may take minutes to load
        embedder = Embedder(dra.embedder, dra.max_tokens, dra.trust_remote_code, device, dra.text, config.sampler.max_new_tokens)
    # policy, reference, optimizer, and the sampler's own copy; from the newest checkpoint if there is one
    intact = checkpoint.newest_intact(run_dir) if first else None
    resume_step = int(max_over_ranks(checkpoint.step_of(intact) if intact else -1))     # the first rank looks, so that all agree
    resume_from = checkpoint.folder_of(run_dir, resume_step) if resume_step >= 0 else None
    n_tokens = len(tokenizer)
    learner = Learner(config.model, config.learner, folder, device, n_tokens, config.sampler.temperature, config.sampler.max_new_tokens,
                      resume_from and resume_from / "policy")
    dtype = DTYPES[config.model.dtype]
    actor = Transformer.from_pretrained(folder, dtype, device)
    actor.n_tokens = learner.policy.n_tokens = min(n_tokens, actor.g.vocab)
    sampler = Sampler(actor, config.sampler, stop_ids(actor.generation_config, tokenizer.eos_token_id))
    if dra.enabled and dra.embedder == "policy":
        embedder = PolicyEmbedder(actor, tokenizer, dra.max_tokens, dra.text)
    metrics_path, samples_path = run_dir / "metrics.jsonl", run_dir / "samples.jsonl"
    done, sizes = 0, {"metrics": 0, "samples": 0}
    if resume_from:
        meta = checkpoint.load(resume_from, learner.optimizer_state())
        done, sizes = meta["step"], meta["sizes"]
        learner.set_updates(meta["updates"])
    if done > config.run.steps:
        raise ValueError(f"run.dir = {config.run.dir!r} holds a run of {done} steps, run.steps = {config.run.steps} is less; raise it or name another run.dir")
    if done == config.run.steps and (run_dir / "final").exists():
        if first:
            print(f"the run in {run_dir} is complete ({done} steps); raise run.steps to continue it or name another run.dir")
        return 0
    if first:
        if done:
            print(f"continuing at step {done} from {resume_from}")
            if (steps := load(Config, run_dir / "config.toml").run.steps) != config.run.steps:
                print(f"run.steps was {steps}: the learning rate of the first {done} steps followed that, that of the others follows {config.run.steps}")
        files.write(run_dir / "config.toml", dump(config))
    sampler.load_weights(full_weights(learner.policy))
    label = labeller(config.eval)
    scale = {"auto": "none" if config.learner.loss == "dr_grpo" else "std"}.get(config.reward.advantage, config.reward.advantage)
    if first:                                           # records behind the checkpoint belong to steps that will be done again
        for path, size in ((metrics_path, sizes["metrics"]), (samples_path, sizes["samples"])):
            with open(path, "ab") as file:
                file.truncate(size)
        if (run_dir / "final").exists():                # of fewer steps: it must not pass for the end of this run if that is never reached
            files.remove(run_dir / "final")

    trackers = Trackers(config.run.trackers if first else [], run_dir, asdict(config), done)

    def log(path: Path, records: list[dict]) -> None:
        if first:
            files.append_jsonl(path, records)
            if path == metrics_path:
                trackers.log(records)

    def save(step: int) -> None:
        for path in (metrics_path, samples_path) if first else ():
            files.sync(path)                       # the sizes in meta.json must be those on disk
        meta = {"updates": learner.updates, "world": world, "sizes": {"metrics": metrics_path.stat().st_size, "samples": samples_path.stat().st_size}} if first else {}

        def write_policy(path: Path) -> None:
            learner.save_policy(path)
            if first:
                tokenizer.save_pretrained(path)

        checkpoint.save(run_dir, step, write_policy, learner.optimizer_state(), meta, config.run.keep)

    def eval_due(step: int) -> bool:
        return step in (0, config.run.steps) or bool(config.eval.every) and step % config.eval.every == 0

    def run_eval(step: int, grader: Grader) -> bool:
        """Evaluates on all benchmarks, each rank its share; False, with nothing logged, if interrupted."""
        results = []
        for name, problems in benchmarks.items():
            if stop.any_rank():
                return False
            start, samples, settings = time.perf_counter(), [], settings_of(config.eval, name)
            with stop.local(f"evaluation after step {step}"):
                places = range(rank, len(problems), world)
                samples = sample_problems(eval_sampler(actor, tokenizer, settings), tokenizer, [problems[i] for i in places], config.data, settings,
                                          grader, places, progress=first, desc=f"eval {name}")
            if stop.any_rank():
                return False
            results.append({"kind": "eval", "step": step, **summarize(name, gather_over_ranks(samples)), "seconds": time.perf_counter() - start})
            if first:
                tqdm.write(f"step {step} | {format_record(results[-1])}")
        log(metrics_path, results)
        return True

    # a run stopped during the evaluation that was due at its last step makes up for it
    evaluated = not eval_due(done) or max_over_ranks(first and f'"kind": "eval", "step": {done},' in metrics_path.read_text(encoding="utf-8")) > 0
    log(metrics_path, [run_record(config, world, device, done)])
    stop.immediate = False
    stop.know_processes()
    saved = done
    with closing(trackers), Grader(config.reward.workers, config.reward.timeout_s) as grader, \
            tqdm(total=config.run.steps, initial=done, desc="train", unit="step", disable=not first) as bar:
        hook = import_function("dra.weights", dra.weights) if dra.weights else None
        rewarder = Rewarder(reward_functions(config.reward), dra, scale, config.sampler.max_new_tokens, grader, embedder,
                            opening(tokenizer), hook)
        running = evaluated or run_eval(done, grader)
        for step in range(done, config.run.steps):
            if not running or stop.any_rank():
                break
            clock = Clock(device)
            pairs = prompts_for_step(config.run.seed, step, rank, world, len(kept), config.data.prompts_per_step)
            rows = [data[kept[i]] for _, i in pairs]
            step_prompts = [prompt_tokens(tokenizer, row["problem"], config.data) for row in rows]
            with stop.local(f"step {step + 1}"):
                groups = sampler.generate(step_prompts, config.sampler.group_size, (config.run.seed, step), [position for position, _ in pairs])
                clock.lap("sample_s")
                completions = [completion for group in groups for completion in group]
                texts = tokenizer.batch_decode([completion.tokens for completion in completions], skip_special_tokens=True)
                scores = rewarder(texts, rows, [len(completion.tokens) for completion in completions], config.sampler.group_size,
                                  [completion.tokens for completion in completions])
                labels = [label(text, rows[i // config.sampler.group_size]) for i, text in enumerate(texts)] if label else []
                clock.lap("reward_s")
            if stop.any_rank():
                break                                   # the unfinished step is dropped: nothing has changed yet
            advantages = scores.advantage.flatten().tolist()
            learnt = [Row(step_prompts[i // config.sampler.group_size], completions[i], advantages[i])
                      for i in rows_in_loss(completions, scores.raw, config.learner)]
            try:
                figures = learner.update(learnt, lr_at(step, config.learner, config.run.steps))
            except FloatingPointError as error:
                raise ValueError(f"{stop.doing}: {error}; lower learner.lr or look at samples.jsonl") from None
            sampler.load_weights(full_weights(learner.policy))
            clock.lap("update_s")
            records = sorted(gather_over_ranks(sample_records(step + 1, pairs, rows, groups, texts, scores, labels)), key=lambda record: record["position"])
            record = {"kind": "train", "step": step + 1, **group_figures(records), **figures, **scores.seconds, **clock.seconds}
            record |= {"tokens_per_s": record["tokens"] / (clock.last - clock.start), "peak_gb": max_over_ranks(memory.peak_gb(device))}
            log(samples_path, records)
            log(metrics_path, [record])
            if first:
                tqdm.write(step_line(record, config.run.steps))
                bar.update()
            done = step + 1
            running = not eval_due(done) or run_eval(done, grader)
            if running and (done == config.run.steps or done % config.run.save_every == 0):
                save(done)
                saved = done
    if stop.any_rank():
        if saved < done:
            save(done)
        if first:
            print(f"interrupted after step {done} of {config.run.steps}, saved in {run_dir}; the same command continues", file=sys.stderr)
        return 128 + int(max_over_ranks(stop.signum))
    part = files.begin(run_dir / "final") if first else files.part_of(run_dir / "final")
    learner.save_policy(part, dtype)
    if first:
        tokenizer.save_pretrained(part)
        files.publish(run_dir / "final")
        print(before_and_after(run_dir))
    return 0


def dry_run(config: Config) -> str:
    """The table of memory.py for one rank of this run, and its last line for more ranks; of the policy, only config.json is read."""
    path = Path(model_folder(config.model, ["config.json"])) / "config.json"
    with torch.device("meta"):
        model = Transformer(read_json(path), where=str(path))

    def parts(world: int) -> list[memory.Part]:
        rows = -(-config.data.prompts_per_step // world) * config.sampler.group_size
        return memory.parts(model, dtype=DTYPES[config.model.dtype], card=True, world=world, rows=rows, slots=min(config.sampler.slots or rows, rows),
                            prompt_tokens=config.data.max_prompt_tokens, max_new_tokens=config.sampler.max_new_tokens,
                            micro_batch_tokens=config.learner.micro_batch_tokens, reference=config.learner.kl_beta > 0,
                            offload=config.learner.offload, checkpointing=config.model.activation_checkpointing)

    return "\n".join([memory.table(parts(1)), *(f"{world} ranks: {memory.summary(parts(world))}" for world in (2, 4, 8))])


def main(argv: list[str]) -> int:
    args = parse_args(Config, argv, __doc__, lambda parser: parser.add_argument(
        "--dry-run", action="store_true", help="print what the run needs of a card's and the host's memory, and end"))
    config = load(Config, args.config, args.overrides)
    if args.dry_run:
        print(dry_run(config))
        return 0
    if not config.run.dir:
        config = replace(config, run=replace(config.run, dir=f"runs/{Path(args.config).stem}"))
    return train(config)


if __name__ == "__main__":
    run_main(main)
