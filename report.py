"""Figures and tables from the records of a run: reads what the trainer writes, needs no model.

Records are those of samples.jsonl (one per group) and metrics.jsonl (one per step or evaluation).
"""
import json
from collections import Counter
from pathlib import Path

from eval import effective_labels


def group_figures(records: list[dict]) -> dict:
    """Means over all completions and groups of a step, from its samples.jsonl records (those of all ranks)."""
    groups = [record["completions"] for record in records]
    flat = [completion for group in groups for completion in group]

    def mean(key: str) -> float:
        return sum(completion[key] for completion in flat) / len(flat)

    weights = [[c["weight"] for c in group] for group in groups]
    pushed = [sum(abs(c["advantage"]) for c in group) for group in groups]
    equal = [len({c["reward"] for c in group}) == 1 for group in groups]
    similarities = [record["similarity"] for record in records if record["similarity"] is not None]
    right = [[str(c["label"]) for c in group if c["correct"]] for group in groups if "label" in group[0]]
    modes = [effective_labels(labels) for labels in right if labels]
    return {
        "reward": mean("reward"), "accuracy": mean("correct"), "smi": mean("smi"), "weight": mean("weight"), "adjusted": mean("adjusted"),
        "density": 1 + mean("smi"), "weight_min": sum(map(min, weights)) / len(groups), "weight_max": sum(map(max, weights)) / len(groups),
        "similarity": sum(similarities) / len(similarities) if similarities else None, "embed_cut": sum(c["cut"] for c in flat),
        "equal_group_share": sum(push for push, same in zip(pushed, equal) if same) / (sum(pushed) or 1.0),
        "rewards": {name: sum(c["rewards"][name] for c in flat) / len(flat) for name in flat[0]["rewards"]},
        "zero_advantage": sum(all(abs(c["advantage"]) < 1e-6 for c in group) for group in groups) / len(groups),
        "modes": sum(modes) / len(modes) if modes else None,
        "tokens": sum(c["length"] for c in flat), "length": mean("length"), "truncated": sum(c["finish"] == "length" for c in flat) / len(flat), "reasons": dict(Counter(c["reason"] for c in flat)),
    }


def step_line(record: dict, steps: int) -> str:
    """A train record of metrics.jsonl as one line for people; the README explains the names."""
    modes = "" if record["modes"] is None else f" | modes {record['modes']:.2f}"
    return (f"step {record['step']}/{steps} | reward {record['reward']:.3f} | acc {record['accuracy']:.3f} | smi {record['smi']:.2f}{modes} | "
            f"zero-adv {record['zero_advantage']:.2f} | kl {record['kl']:.4f} | ent {record['entropy']:.3f} | gnorm {record['grad_norm']:.2f} | "
            f"len {record['length']:.0f} | trunc {record['truncated']:.2f} | gap {record['gap']:.0e} | gen {record['sample_s']:.2f}s | rew {record['reward_s']:.2f}s | "
            f"upd {record['update_s']:.2f}s | {record['tokens_per_s'] / 1000:.1f}k tok/s")


def before_and_after(run_dir: Path) -> str:
    """First and last evaluation of every benchmark, and where things are."""
    records = [record for record in map(json.loads, (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()) if record["kind"] == "eval"]
    lines = [f"\n{'benchmark':<20}{'step':>6}{'accuracy':>20}{'effective strategies':>24}"] if records else []
    for name in dict.fromkeys(record["benchmark"] for record in records):
        mine = [record for record in records if record["benchmark"] == name]
        for record in (mine[0], mine[-1]):
            strategies = record.get("effective_strategies")
            shown = "-" if strategies is None else f"{strategies:.2f}"
            lines.append(f"{name:<20}{record['step']:>6}{record['accuracy']:>12.3f} ± {record['accuracy_se']:.3f}{shown:>24}")
    lines.append(f"\npolicy       {run_dir}/final\nmetrics      {run_dir}/metrics.jsonl\nsamples      {run_dir}/samples.jsonl\n"
                 f"checkpoints  {run_dir}/checkpoints\nconfig       {run_dir}/config.toml")
    return "\n".join(lines)
