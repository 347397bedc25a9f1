"""Whether work fits into memory, and what to change where it does not, found by trying.

    to_fit(model, work, 24e9)                           # "to fit: learner.offload=true (~10.9 GB, ...), or 4 GPUs ..."
"""
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from model import Geometry, Transformer
from plan.memory import Work, host_peak, kv_bytes, parts, peaks
from sampler import FREE_SHARE

RESERVED_GB = 1.0                                       # of a GPU, for the driver, libraries and fragmentation


def gb(size: float) -> str:
    return f"~{size / 1e9:.{0 if size >= 99.5e9 else 1}f} GB"


def fits(need: float, free: float) -> bool:
    """With RESERVED_GB to spare."""
    return need + RESERVED_GB * 1e9 <= free


def tokens_left(standing: float, memory: float, g: Geometry, dtype: torch.dtype) -> int:
    """Tokens of an evaluation's rows that the sampler keeps on a GPU of `memory` bytes, `standing` of them taken."""
    return max(0, int(FREE_SHARE * (memory - standing) // kv_bytes(g, dtype)))


def rows_at_a_time(tokens: int, longest: int) -> int:
    """Rows that an evaluation decodes at a time, as Sampler.fitting has it: what fits if half as long as can be."""
    return max(1, 2 * tokens // max(longest, 1))


def knobs(work: Work) -> Iterator[tuple[str, list[Work]]]:
    """(key, the work with other values of it, the mildest first) of each setting that saves memory on the GPU."""
    if not work.checkpointing:
        yield "model.activation_checkpointing", [replace(work, checkpointing=True)]
    smaller = [work.micro_batch_tokens >> i for i in range(1, 12) if work.micro_batch_tokens >> i > work.row_tokens]
    if work.micro_batch_tokens > work.row_tokens:       # a row is never cut
        yield "learner.micro_batch_tokens", [replace(work, micro_batch_tokens=n) for n in (*smaller, work.row_tokens)]
    fewer = [n for i in range(1, 12) if (n := (work.slots or work.rows) >> i)]
    if fewer:
        yield "sampler.slots", [replace(work, slots=n) for n in fewer]
    if work.gpu and not work.offload:
        yield "learner.offload", [replace(work, offload=True)]
    total = work.prompts * work.world
    ranks = [n for n in (2, 4, 8) if work.world < n <= total]
    if work.gpu and ranks:
        yield "GPUs", [replace(work, world=n, prompts=-(-total // n)) for n in ranks]


def value(key: str, work: Work) -> str:
    """A knob as one turns it."""
    return {"model.activation_checkpointing": "model.activation_checkpointing=true",
            "learner.micro_batch_tokens": f"learner.micro_batch_tokens={work.micro_batch_tokens}",
            "sampler.slots": f"sampler.slots={work.slots}",
            "learner.offload": "learner.offload=true",
            "GPUs": f"{work.world} GPUs (torchrun --nproc-per-node {work.world})"}[key]


def to_fit(model: Transformer, work: Work, gpu: float, host: float | None = None) -> str:
    """What to change so that the work fits `gpu` bytes, and `host` bytes of host memory where that is known, in words.

    Every setting that suffices by itself, with the mildest value that does; if none does, several together.
    """
    def need(changed: Work) -> tuple[float, float]:
        found = parts(model, changed)
        return max(peaks(found).values()), host_peak(found)

    def enough(changed: Work) -> bool:
        most, most_host = need(changed)
        return fits(most, gpu) and (host is None or most_host <= host)

    def said(changed: Work, words: Sequence[str]) -> str:
        most, most_host = need(changed)
        in_host = f", {gb(most_host)} of host memory" if changed.offload else ""
        return f"{' '.join(words)} ({gb(most)}{in_host})"

    alone = [said(changed, [value(key, changed)]) for key, options in knobs(work)
             if (changed := next(filter(enough, options), None))]
    if alone:
        return "to fit: " + ", or ".join(alone)
    changed, words = work, []
    while step := next(((key, options[-1]) for key, options in knobs(changed) if key not in words), None):
        words.append(step[0])
        changed = step[1]
        if enough(changed):
            return "to fit, together: " + said(changed, [value(key, changed) for key in words])
    return f"nothing that can be set makes it fit ({gb(need(changed)[0])} are left); take a smaller policy, a lower " \
           "sampler.max_new_tokens, or a larger GPU"
