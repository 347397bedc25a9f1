"""How long a step takes on a GPU: bytes over bandwidth in the rollout, FLOPs over speed in the update.

    times = step_times(model, work, named("h100"), Lengths(prompt=200, mean=2400, cap=3584))

Shares of what a data sheet promises were measured once on one H200 with an earlier version of this code
(benchmarks/RESULTS.md): MEASURED_ON. They are taken to hold on other GPUs. Not counted: traffic between GPUs, grading,
the first step's captures and plans, and small policies, for which starting kernels takes longer than running them.
"""
from dataclasses import dataclass

import torch

from model import Geometry, Transformer
from plan.gpus import Gpu
from plan.memory import Work, kv_bytes

MEASURED_ON = "shares of data sheets measured once on one H200 with an earlier version"
# decode steps of 48, 96 and 256 rows: 4.4, 5.8, 11.3 ms, 27 to 37 % of the copy rate; the rest is starting kernels
LAYER_S = 60e-6                                         # of a decode step, for a layer's kernels, however small
BANDWIDTH_SHARE = 0.39                                  # of weights, keys and values read in a decode step
FLOPS_SHARE = 0.31                                      # of an update's products: 6.5 s with recomputation, 5.8 without
OPTIMIZER_BYTES = 28                                    # of a parameter: read and written by AdamW and clipping
OPTIMIZER_SHARE = 0.8                                   # of the bandwidth
# learner.offload: 8.7 s for two micro-batches, 6.6 of them in the backward pass and 1.2 in AdamW on the host
TO_GPU = 26e9                                           # bytes a second of weights from host memory
TO_HOST = 2.4e9                                         # of gradients, added up there
HOST = 41e9                                             # of AdamW's bytes


@dataclass(frozen=True)
class Lengths:
    """Tokens of a prompt and of a completion on average, and where completions are cut."""
    prompt: float
    mean: float
    cap: int

    @property
    def positions(self) -> float:
        """Keys that a completion's tokens read, summed: half of length^2, taken half-way between equal lengths and all
        or nothing."""
        return self.prompt * self.mean + self.mean * (self.mean + self.cap) / 4


@dataclass(frozen=True)
class Times:
    """Of a step on each rank; seconds are 0 where the GPU's speed is not known."""
    decode_bytes: float                                 # read by all decode steps
    decode_steps: float
    update_flops: float
    rollout_s: float
    update_s: float

    @property
    def step_s(self) -> float:
        return self.rollout_s + self.update_s


def product_weights(model: Transformer) -> tuple[int, int]:
    """Elements of the matrices that a token is multiplied by: in the blocks, in the LM head."""
    blocks = sum(p.numel() for name, p in model.named_parameters() if name.startswith("blocks.") and p.ndim == 2)
    return blocks, model.g.vocab * model.g.hidden


def attention_flops(g: Geometry, positions: float) -> float:
    """Of one forward pass whose queries see so many keys in all: scores and their sum over values."""
    return 4.0 * g.layers * g.heads * g.head_dim * positions


def decoding(model: Transformer, dtype: torch.dtype, gpu: Gpu, rows: int, slots: int,
             lengths: Lengths) -> tuple[float, float, float]:
    """(steps, bytes read, seconds) of sampling `rows` completions, `slots` at a time.

    Each step reads the matrices once and the keys and values of its rows. One row is taken to reach the cap.
    """
    g, weights = model.g, sum(product_weights(model))
    slots = min(slots, rows)
    steps = float(lengths.cap) if slots == rows else rows * lengths.mean / slots + lengths.cap - lengths.mean
    cache = rows * lengths.positions * kv_bytes(g, dtype)
    matrices = steps * weights * dtype.itemsize
    if not (gpu.bandwidth and gpu.flops(dtype)):
        return steps, matrices + cache, 0.0
    rate = gpu.bandwidth * BANDWIDTH_SHARE
    products = 2.0 * weights * rows * lengths.mean / (gpu.flops(dtype) * FLOPS_SHARE)
    return steps, matrices + cache, steps * g.layers * LAYER_S + max(matrices / rate, products) + cache / rate


def step_times(model: Transformer, work: Work, gpu: Gpu, lengths: Lengths) -> Times:
    """A step of training: what `work` samples and trains, with completions of these lengths."""
    g, (blocks, head) = model.g, product_weights(model)
    steps, read, rollout_s = decoding(model, work.dtype, gpu, work.rows, work.decoded, lengths)
    prompts, completions = work.prompts * lengths.prompt, work.rows * lengths.mean
    tokens = prompts + completions                      # a prompt is computed once for its group
    # what costs as much as a forward pass: the reference, and in each update forward, backward (two), recomputation
    passes = work.reference + (3 + work.checkpointing) * work.updates
    update_flops = (2.0 * blocks * tokens * passes
                    + 2.0 * head * completions * (work.reference + 4 * work.updates)    # always recomputed
                    # the backward pass of attention has five products, the forward pass two
                    + attention_flops(g, work.rows * lengths.positions) * (passes + 0.5 * work.updates))
    prefill_flops = 2.0 * blocks * prompts
    parameters = sum(p.numel() for p in model.parameters())
    speed = gpu.flops(work.dtype) * FLOPS_SHARE
    if not speed:
        return Times(read, steps, update_flops, 0.0, 0.0)
    update_s = update_flops / speed
    if work.offload:
        # every micro-batch moves all weights for each pass, and its gradients to the host
        moved = -(-tokens // work.micro_batch()[0]) * parameters / work.world * 4
        update_s += moved * ((work.reference + 2 * work.updates) / TO_GPU + work.updates / TO_HOST)
        update_s += work.updates * parameters * OPTIMIZER_BYTES / HOST
    else:
        update_s += work.updates * parameters / work.world * OPTIMIZER_BYTES / (gpu.bandwidth * OPTIMIZER_SHARE)
    return Times(read, steps, update_flops, rollout_s + prefill_flops / speed, update_s)
