"""dra_grpo.py that writes into the file $PHASE what the first rank is doing, and for which time: "save 2".

    PHASE=FILE python tests/marked.py --config ...          or under torchrun

With it a kill can be aimed at what lasts milliseconds, and one at a random instant be placed afterwards.
"""
import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import checkpoint  # noqa: E402
import dra_grpo  # noqa: E402
import files  # noqa: E402
from ranks import is_first_rank, run_main  # noqa: E402

PHASES = [(files, "write", "startup"), (dra_grpo, "sample_problems", "eval"), (dra_grpo.Sampler, "generate", "sample"),
          (dra_grpo.Rewarder, "__call__", "reward"), (dra_grpo.Learner, "update", "update"),
          (checkpoint, "save", "save"), (dra_grpo.Learner, "save_policy", "final"), (files, "publish", "final")]
file = os.open(os.environ["PHASE"], os.O_WRONLY)
times: Counter[str] = Counter()
nested = False


def mark(phase: str) -> None:
    times[phase] += 1
    if is_first_rank():
        # one write of one length: a reader never sees a mixture
        os.pwrite(file, f"{phase} {times[phase]}".ljust(16).encode(), 0)


def marked(function: Callable, phase: str) -> Callable:
    def call(*arguments, **options):
        global nested
        if nested:                                      # evaluations sample, saves write the policy: the outer counts
            return function(*arguments, **options)
        nested = True
        mark(phase)
        try:
            return function(*arguments, **options)
        finally:
            nested = False
            if phase not in ("startup", "final"):       # these have more to them than what is named here
                mark("between")
    return call


if __name__ == "__main__":
    for owner, name, phase in PHASES:
        setattr(owner, name, marked(getattr(owner, name), phase))
    run_main(dra_grpo.main)
