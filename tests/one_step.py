"""One step of training in a process of its own: the policy in a folder, bfloat16, two completions of 16 tokens.

    python tests/one_step.py FOLDER                         prints the peak resident memory in GB
"""
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from learner import Learner, LearnerConfig, Row  # noqa: E402
from model import Geometry, ModelConfig, Transformer  # noqa: E402
from plan.memory import Work, peak_gb  # noqa: E402
from ranks import full_weights, leave, start_ranks  # noqa: E402
from sampler import Sampler, SamplerConfig  # noqa: E402

PROMPT, NEW = 8, 16
WORK = Work(prompts=1, group_size=2, prompt_tokens=PROMPT, max_new_tokens=NEW, dtype=torch.bfloat16, gpu=False)


def main(folder: str) -> None:
    device = start_ranks("bfloat16")[2]
    vocab = Geometry.from_folder(folder).vocab
    learner = Learner(ModelConfig(folder, "bfloat16"), LearnerConfig(), folder, device, vocab, 1.0, NEW)
    sampler = Sampler(Transformer.from_pretrained(folder, torch.bfloat16), SamplerConfig(2, NEW), [])
    prompt = list(range(PROMPT))
    for step in range(2):                               # gradients of the second meet moments and a cache
        completions = sampler.generate([prompt], 2, (0, step))[0]
        learner.update([Row(prompt, completion, 1.0 - 2 * i) for i, completion in enumerate(completions)], 1e-6)
        sampler.load_weights(full_weights(learner.policy))
    print(peak_gb(device))


if __name__ == "__main__":
    main(sys.argv[1])
    leave(0)
