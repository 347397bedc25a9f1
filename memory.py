"""What a run needs, before it starts: bytes on the GPU and in host memory of one rank, part by part.

    python dra_grpo.py --config configs/dra_grpo.toml --dry-run

The model is built on the meta device, which has shapes and no memory. Weights, gradients and moments are counted there,
and so is what autograd saves for a token in a block, through hooks. The rest (the cache, the chunked
LM head, what FSDP2 gathers) are formulas. It assumes the largest batches: every completion reaches max_new_tokens.
Not counted: the embedder's activations, and what the driver and libraries use.
"""
import resource
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.autograd.graph import saved_tensors_hooks

from model import PACK_FROM, Block, Transformer, logits_per_chunk
from sampler import COLUMNS

GPUS_GB = (16, 24, 40, 80)
RESERVED_GB = 1.0                                       # of a GPU, for the driver, libraries and fragmentation
PROBE_TOKENS = 64
PHASES = ("sampling", "LM head", "blocks", "gradients")     # moments that can be a step's peak; backward: last three


@dataclass(frozen=True)
class Part:
    name: str
    gpu: int                                            # bytes on the GPU (in memory, without one)
    host: int = 0                                       # bytes in host memory, with a GPU
    phases: tuple[str, ...] = PHASES


class SavedAttention(torch.autograd.Function):
    """Computes nothing; saves what every fused attention does: queries, keys, values, result, a log-sum per query."""

    @staticmethod
    def forward(ctx, layer: int, q_NTHD: torch.Tensor, k_NTKD: torch.Tensor, v_NTKD: torch.Tensor) -> torch.Tensor:
        out_NTHD = torch.empty_like(q_NTHD)
        ctx.save_for_backward(q_NTHD, k_NTKD, v_NTKD, out_NTHD,
                              q_NTHD.new_empty(q_NTHD.shape[:-1], dtype=torch.float32))
        return out_NTHD


def block_bytes_per_token(model: Transformer, dtype: torch.dtype) -> int:
    """Bytes that autograd saves for one token in one block."""
    g = model.g
    with torch.device("meta"), torch.enable_grad():
        block = Block(g, 0).to(dtype)
        x_NTC = torch.empty(1, PROBE_TOKENS, g.hidden, dtype=dtype, requires_grad=True)
        cos, sin = (torch.empty(PROBE_TOKENS, 1, g.head_dim, dtype=dtype) for _ in range(2))
        saved: list[torch.Tensor] = []
        with saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
            block(x_NTC, cos, sin, SavedAttention.apply)
    given = {tensor.untyped_storage()._cdata for tensor in (x_NTC, cos, sin, *block.parameters())}
    storages = (tensor.untyped_storage() for tensor in saved)       # views share one
    sizes = {storage._cdata: storage.nbytes() for storage in storages}
    return sum(size for storage, size in sizes.items() if storage not in given) // PROBE_TOKENS


def parts(model: Transformer, *, dtype: torch.dtype, gpu: bool, world: int, rows: int, slots: int, prompt_tokens: int,
          max_new_tokens: int, micro_batch_tokens: int, reference: bool, offload: bool,
          checkpointing: bool) -> list[Part]:
    """The parts of one of `world` ranks that samples and trains `rows` completions a step.

    `model` may be on the meta device. Without a `gpu` everything is in one memory, and the sampler keeps its packed
    copies and a cache in float32.
    """
    g = model.g
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    total, root = sum(sizes.values()), sum(size for name, size in sizes.items() if not name.startswith("blocks."))
    block = (total - root) // g.layers
    master, compute = torch.promote_types(dtype, torch.float32).itemsize, dtype.itemsize
    fsdp = world > 1 or offload or compute < master
    cached = compute if gpu else 4

    def sharded(name: str, size: int, phases: tuple[str, ...] = PHASES) -> Part:
        return Part(name, 0, size // world, phases) if offload and gpu else Part(name, size // world, 0, phases)

    longest = prompt_tokens + max_new_tokens
    tokens = max(min(micro_batch_tokens, rows * longest), longest)
    inputs = tokens * g.hidden * compute                # of a block
    in_block = block_bytes_per_token(model, dtype) * tokens
    logits = min(logits_per_chunk(gpu), tokens * max_new_tokens // longest * g.vocab)
    columns = -(-longest // COLUMNS) * COLUMNS
    kv = 2 * g.layers * g.kv_heads * g.head_dim * cached
    # a GPU keeps the cache and the graphs over it for the next step
    sampling = PHASES if gpu and not offload else PHASES[:1]
    packed = sum(size for name, size in sizes.items() if name.endswith(".weight") and size >= PACK_FROM
                 and not name.startswith("embed"))
    found = [
        sharded("master weights", total * master),
        sharded("gradients", total * master, phases=PHASES[1:]),
        sharded("AdamW's two moments", 2 * total * master),
        sharded("reference weights", total * master * reference),
        Part("sampler's weights", total * compute + (0 if gpu else packed * cached)),
        Part("cache of keys and values", slots * columns * kv, phases=sampling),
        Part("logits and their cumulative sums", slots * g.vocab * 20, phases=sampling),
        Part("activations, inputs of the blocks", inputs * g.layers, phases=("LM head", "blocks")),
        Part("activations, within blocks", in_block * (1 if checkpointing else g.layers),
             phases=("blocks",) if checkpointing else ("LM head", "blocks")),
        Part("a block's gradients on their way", 2 * tokens * g.intermediate * compute, phases=("blocks",)),
        Part("one chunk of the LM head", 3 * logits * 4, phases=("LM head",)),
    ]
    if fsdp:
        found += [Part("gathered by FSDP2: outer weights", root * compute, phases=("LM head", "blocks", "gradients")),
                  Part("gathered by FSDP2: two blocks", 2 * block * (compute + master), phases=("blocks",)),
                  Part("gathered by FSDP2: outer gradients", root * (compute + master), phases=("gradients",))]
    else:                                               # a matrix has a micro-batch's gradient and the sum of them
        found.append(Part("the largest gradient once more", max(sizes.values()) * master,
                          phases=("LM head", "gradients")))
    return [part for part in found if part.gpu or part.host]


def peak_gb(device: torch.device) -> float:
    """Peak memory of this process so far in GB (10^9 bytes): allocated on its GPU, or resident without one."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def peaks(found: Sequence[Part]) -> dict[str, int]:
    """Bytes on the GPU in each phase."""
    return {phase: sum(part.gpu for part in found if phase in part.phases) for phase in PHASES}


def summary(found: Sequence[Part]) -> str:
    """The peak, and the GPUs on which it leaves RESERVED_GB."""
    peak = max(peaks(found).values())
    host = sum(part.host for part in found)
    fits = ", ".join(f"{size} GB" for size in GPUS_GB if peak / 1e9 + RESERVED_GB <= size)
    fits = fits or f"none of {', '.join(map(str, GPUS_GB))} GB"
    return (f"peak {peak / 1e9:.2f} GB on the GPU, {host / 1e9:.2f} GB in host memory; "
            f"fits with {RESERVED_GB:.0f} GB to spare: {fits}")


def table(found: Sequence[Part]) -> str:
    """Every part with its bytes in GB (10^9) and the phases it exists in, the sum of each phase, and the summary."""
    def line(name: str, gpu: int, host: int = 0, when: str = "") -> str:
        shown = (f"{size / 1e9:.3f}" if size else "" for size in (gpu, host))
        return "{:<36}{:>10}{:>10}   {}".format(name, *shown, when).rstrip()

    return "\n".join([
        "{:<36}{:>10}{:>10}".format("one rank, GB", "GPU", "host"),
        *(line(part.name, part.gpu, part.host, "" if part.phases == PHASES else ", ".join(part.phases))
          for part in found),
        *(line(f"in all, {phase}", size) for phase, size in peaks(found).items()),
        f"1 rank: {summary(found)}",
    ])
