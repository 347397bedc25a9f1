"""Run by torchrun from test_learner.py: updates on fixed rows, and a save, on any number of ranks.

    python updates.py JOBS OUT
"""
import json
import sys
import weakref
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from learner import Learner, LearnerConfig, Row  # noqa: E402
from model import ModelConfig  # noqa: E402
from ranks import full_weights, gather_over_ranks, leave, start_ranks  # noqa: E402
from sampler import Completion  # noqa: E402


def rows_for(seed: int, groups: int, G: int) -> list[list[Row]]:
    """Groups of rows with ragged lengths; the last group has one-token completions only.

    All end with id 0, the tiny policy's stop token and its pad.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(low, high, n):
        return torch.randint(low, high, (n,), generator=generator).tolist()

    result = []
    for group in range(groups):
        prompt = draw(4, 100, 3 + 2 * group)
        lengths = [1] * G if group == groups - 1 else draw(2, 25, G)
        advantages = torch.randn(G, generator=generator).tolist()
        result.append([Row(prompt, Completion([*draw(4, 100, n - 1), 0], [-1.0] * n, "stop", [1 / n] * n), advantage)
                       for n, advantage in zip(lengths, advantages)])
    return result


def updated(job: dict, rank: int, world: int) -> tuple[dict[str, torch.Tensor], list[dict]]:
    """Weights and figures after 3 steps; from the second on, the KL term is not trivial."""
    settings = LearnerConfig(**job["learner"])
    model = ModelConfig(job["model"], job["dtype"], job.get("checkpointing", False))
    learner = Learner(model, settings, job["model"], torch.device("cpu"), 297, 0.7, 32)
    figures = []
    for step in range(3):
        groups = rows_for(step, 4, 3)
        groups = [group if i not in job.get("without", ()) else [] for i, group in enumerate(groups)]
        groups = [[row._replace(advantage=0.0) for row in group] if i in job.get("zero", ()) else group
                  for i, group in enumerate(groups)]
        mine = groups[rank::world]
        if job.get("reverse"):
            mine = [group[::-1] for group in mine[::-1]]
        figures.append(learner.update([row for group in mine for row in group], lr=job["lr"]))
    return {name: tensor.clone() for name, tensor in full_weights(learner.policy)}, figures


def held_while_saving(folder: Path) -> int:
    """Saves the tiny policy; of the whole weights that are gathered for it, how many this rank holds at the most."""
    learner = Learner(ModelConfig("tiny/policy"), LearnerConfig(), "tiny/policy", torch.device("cpu"), 297, 0.7, 32)
    module, gathered, held = sys.modules[Learner.__module__], [], []
    full_weights = module.full_weights

    def watched(model):
        for name, tensor in full_weights(model):
            gathered.append(weakref.ref(tensor := tensor.clone()))
            yield name, tensor
            del tensor
            held.append(sum(x() is not None for x in gathered))

    module.full_weights = watched
    learner.save_policy(folder)
    module.full_weights = full_weights
    return max(held)


if __name__ == "__main__":
    torch.set_num_threads(1)
    rank, world, _ = start_ranks()
    results = [updated(job, rank, world) for job in json.loads(sys.argv[1])]
    held = gather_over_ranks([held_while_saving(Path(sys.argv[2]).parent / "saved")])
    if rank == 0:
        torch.save((results, held), sys.argv[2])
    leave(0)
