"""Stands in for dra_grpo.py in the tests of the runner: four steps and two evaluations, a line of steps.txt for each.

Like the trainer it continues in its folder: a step that is there is not made again. After as many steps as the file
STOP_AT next to the run folders says, it waits to be ended; a seed of 9 fails.
"""
import json
import sys
import time
from pathlib import Path

STEPS = 4
settings = dict(word.split("=", 1) for word in sys.argv[1:] if "=" in word)
folder, seed = Path(settings["run.dir"]), int(settings["run.seed"])
folder.mkdir(parents=True, exist_ok=True)
if seed == 9:
    print("error: this seed is refused")
    sys.exit(2)
done, limit = folder / "steps.txt", folder.with_name("STOP_AT")
while (made := len(done.read_text().splitlines()) if done.exists() else 0) < STEPS:
    if limit.exists() and made == int(limit.read_text()):
        time.sleep(0.05)
        continue
    with open(done, "a") as file:
        file.write(f"{made}\n")


def evaluation(step: int, right: int) -> dict:
    return {"kind": "eval", "step": step, "benchmark": "test", "n": 1, "samples": 10, "accuracy": right / 10,
            "accuracy_se": 0.1, "pass_at_k": {"1": right / 10, "8": 1.0}, "effective_strategies": 2.0 - step / 10,
            "effective_strategies_pooled": 2.0, "strategies": {"a": right}, "labels": {"a": 8, "None": 2}}


def step(number: int) -> dict:
    return {"kind": "train", "step": number, "accuracy": number / 10, "entropy": 1 / 3, "modes": 2.0, "sample_s": 1.0,
            "reward_s": 0.5, "update_s": number / 2}


def group(number: int) -> dict:
    parts = [(True, 1.0, "a"), (True, -0.5, "b"), (number == 4, -0.5, "a"), (number == 4, 0.0, None)]
    return {"step": number, "completions": [{"correct": c, "advantage": a, "label": label} for c, a, label in parts]}


(folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in [
    {"kind": "run", "step": 0, "torch": "2", "device": "cpu"}, evaluation(0, 5), *map(step, range(1, STEPS + 1)),
    evaluation(STEPS, 6 + seed)]))
(folder / "samples.jsonl").write_text("".join(json.dumps(group(number)) + "\n" for number in range(1, STEPS + 1)))
