"""What a run needs, before it starts: bytes on the GPU and in host memory of one rank, part by part.

    found = parts(model, Work(prompts=8, group_size=6, ...))
    peaks(found)                                        # bytes on the GPU in each phase of a run

The model may be on the meta device, which has shapes and no memory. Weights, gradients and moments are counted there,
and so is what autograd saves for a token in a block, through hooks. The rest (the cache, the chunked LM head, what
FSDP2 gathers, a checkpoint) are formulas. They assume the largest batches: every completion reaches max_new_tokens.
"""
import re
import resource
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.autograd.graph import saved_tensors_hooks

from checkpoint import FILE_BYTES
from embedder import BYTES_PER_PASS, TOKENS_PER_PASS
from learner import LearnerConfig
from model import PACK_FROM, Block, Geometry, Transformer, logits_per_chunk, product_dtype, read_json
from sampler import COLUMNS, PREFILL_TOKENS, row_bucket

# moments that can be a run's peak; of an update those of the backward pass: LM head, blocks, then all gradients at once
UPDATE = ("LM head", "blocks", "gradients")
PHASES = ("loading", "sampling", "embedding", *UPDATE, "checkpoint", "evaluation")
AFTER_LOADING = PHASES[1:]
PROCESS_GB = {True: 3.0, False: 0.35}                   # resident before any tensor: with CUDA's libraries, without
EMBEDDER_GB = 0.2                                       # and with sentence-transformers
PROBE_TOKENS = 64
DRAW_BYTES = 14                                         # of a logit of the sampler: once in bf16, three times in fp32
TOP_P_BYTES = 34                                        # and with top-p: its mass and digit as integers, some twice
PUBLISHED = (95_000_000, 384, 1536)                     # bytes in bf16, widths of the embedder of the recipes: 47.7M


@dataclass(frozen=True)
class Work:
    """What one of `world` ranks does at most: samples and trains prompts x group_size completions a step.

    Without a `gpu` everything is in one memory, and the sampler keeps packed copies of its matrices.
    """
    prompts: int
    group_size: int
    prompt_tokens: int
    max_new_tokens: int
    dtype: torch.dtype
    gpu: bool = True
    world: int = 1
    slots: int = 0                                      # rows decoded at a time, 0 for all
    micro_batch_tokens: int = LearnerConfig.micro_batch_tokens
    updates: int = LearnerConfig.updates_per_rollout
    reference: bool = False
    offload: bool = False
    checkpointing: bool = False
    embedder: tuple[int, int] = (0, 0)                  # bytes of its weights, and while it reads
    eval_tokens: int = 0                                # of the longest row of an evaluation, 0 for none

    @property
    def rows(self) -> int:
        return self.prompts * self.group_size

    @property
    def row_tokens(self) -> int:
        return self.prompt_tokens + self.max_new_tokens

    @property
    def decoded(self) -> int:
        """Rows that the sampler's memory is made for."""
        return row_bucket(min(self.slots or self.rows, self.rows), self.gpu)

    @property
    def fsdp(self) -> bool:
        return self.world > 1 or self.offload

    def micro_batch(self) -> tuple[int, int]:
        """Distinct tokens of the largest micro-batch, and how many of them the LM head reads."""
        tokens = self.prompts * self.prompt_tokens + self.rows * self.max_new_tokens
        tokens = max(min(self.micro_batch_tokens, tokens), self.row_tokens)
        groups = -(-tokens // (self.prompt_tokens + self.group_size * self.max_new_tokens))
        return tokens, tokens - groups * self.prompt_tokens


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


def kv_bytes(g: Geometry, dtype: torch.dtype, gpu: bool = True) -> int:
    """Keys and values of one token in the cache."""
    return 2 * g.layers * g.kv_heads * g.head_dim * (dtype if gpu else multiplied_in(dtype)).itemsize


def multiplied_in(dtype: torch.dtype) -> torch.dtype:
    """What this CPU multiplies `dtype` in, and keeps a cache and packed matrices in."""
    return product_dtype(torch.empty(0, dtype=dtype))


def pass_bytes(g: Geometry, dtype: torch.dtype) -> int:
    """Of one token in a pass without gradients, at a block's widest: gate, up, silu(gate) and their product."""
    return dtype.itemsize * (4 * g.intermediate + 3 * g.hidden)


def embedder_bytes(name_or_path: str, g: Geometry, work: Work) -> tuple[int, int]:
    """(bytes of its weights, bytes while it reads) of the embedder of a run; one that is not a folder here counts as
    the recipes' own."""
    if name_or_path == "policy":
        return 0, TOKENS_PER_PASS * pass_bytes(g, work.dtype)
    size, hidden, intermediate = PUBLISHED
    folder, itemsize = Path(name_or_path), 2 if work.gpu else 4
    if folder.is_dir():                                 # its files are float32, or as here
        size = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
        if (folder / "config.json").is_file():
            network = read_json(folder / "config.json")
            hidden = network.get("hidden_size", hidden)
            intermediate = network.get("intermediate_size", 4 * hidden)
    length = work.max_new_tokens
    texts = min(32, work.rows, max(1, BYTES_PER_PASS // (3 * length)))      # a token is three bytes or more
    # a token in the widest layer, and its rows of two masks
    return size * itemsize // 2, texts * length * (itemsize * (5 * intermediate + 3 * hidden) + 2 * itemsize * length)


# ------------------------------------------------------------------------------------------------ the parts


def parts(model: Transformer, work: Work) -> list[Part]:
    """The parts of one rank of a training run."""
    g = model.g
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    total, root = sum(sizes.values()), sum(size for name, size in sizes.items() if not name.startswith("blocks."))
    master = torch.promote_types(work.dtype, torch.float32).itemsize
    world, host = work.world, work.offload and work.gpu

    def sharded(name: str, size: int, phases: tuple[str, ...]) -> Part:
        return Part(name, 0, size // world, phases) if host else Part(name, size // world, 0, phases)

    found = [
        Part("Python and libraries", *in_host(work, PROCESS_GB[work.gpu] * 1e9)),
        sharded("master weights", total * master, PHASES),
        sharded("gradients", total * master, UPDATE),
        sharded("AdamW's two moments", 2 * total * master, AFTER_LOADING),
        sharded("reference weights", total * master * work.reference, PHASES),
        *embedder_parts(work),
        *sampling_parts(g, work, {name: size for name, size in sizes.items() if name.endswith(".weight")}, total),
        *update_parts(model, work, root, (total - root) // g.layers, max(sizes.values())),
    ]
    if work.gpu and (world > 1 or work.offload):        # FSDP2 takes it apart once it is whole
        found.append(Part("the whole policy as it is loaded", total * master, 0, ("loading",)))
    # the writer copies a file's tensors to the host, each to bytes, and all to the file's; then the first rank gathers
    file = min(FILE_BYTES + max(sizes.values()) * master, 2 * total * master) // world
    found.append(Part("a checkpoint being written", *in_host(work, max(file * (2 + (work.gpu and not host)),
                                                                       total * master)), ("checkpoint",)))
    if work.eval_tokens:
        found.append(Part("evaluation: one row's keys and values", work.eval_tokens * kv_bytes(g, work.dtype, work.gpu)
                          + g.vocab * (DRAW_BYTES + TOP_P_BYTES), 0, ("evaluation",)))
    return [part for part in found if part.gpu or part.host]


def in_host(work: Work, size: float) -> tuple[int, int]:
    """(GPU, host) bytes of what is in host memory; without a GPU there is one memory."""
    return (0, int(size)) if work.gpu else (int(size), 0)


def embedder_parts(work: Work) -> list[Part]:
    weights, reading = work.embedder
    return [Part("sentence-transformers", *in_host(work, EMBEDDER_GB * 1e9 * (weights > 0))),
            Part("embedder's weights", weights), Part("embedder while it reads", reading, 0, ("embedding",))]


def sampling_parts(g: Geometry, work: Work, matrices: dict[str, int], total: int) -> list[Part]:
    # a GPU keeps the cache and the graphs over it for the next step, but not for an evaluation
    stays = PHASES[1:-1] if work.gpu and not work.offload else ("sampling",)
    kv, columns = kv_bytes(g, work.dtype, work.gpu), -(-work.row_tokens // COLUMNS) * COLUMNS
    prompts = work.prompts * work.prompt_tokens
    # keys and values of all prompts, and of a pass; a CPU's memory for it is free again before it draws
    prefill = prompts * kv + min(prompts, PREFILL_TOKENS) * (kv + pass_bytes(g, work.dtype))
    draw = work.decoded * g.vocab * DRAW_BYTES
    found = [Part("sampler's weights", total * work.dtype.itemsize, 0, AFTER_LOADING),
             Part("cache of keys and values", work.decoded * columns * kv, 0, stays)]
    if work.gpu:
        return [*found, Part("graphs: logits and the draw", draw, 0, stays),
                Part("pass over the prompts", prefill, 0, ("sampling",))]
    packed = sum(size for name, size in matrices.items() if size >= PACK_FROM and not name.startswith("embed"))
    return [*found, Part("sampler's packed matrices", packed * multiplied_in(work.dtype).itemsize, 0, AFTER_LOADING),
            Part("pass over the prompts, or the draw", max(prefill, draw), 0, stays)]


def update_parts(model: Transformer, work: Work, root: int, block: int, largest: int) -> list[Part]:
    """Beside weights, gradients and moments. `root`: parameters outside the blocks; `block`: of one; `largest`: of the
    largest matrix."""
    g, compute = model.g, work.dtype.itemsize
    master = max(4, compute)
    tokens, completion_tokens = work.micro_batch()
    in_block = block_bytes_per_token(model, work.dtype) * tokens
    logits, chunk = completion_tokens * g.vocab, logits_per_chunk(work.gpu)
    several = logits > chunk                            # then one is being made while the one before is still there
    inside = ("blocks",) if work.checkpointing else ("LM head", "blocks")
    found = [
        Part("activations, inputs of the blocks", tokens * g.hidden * compute * g.layers, 0, ("LM head", "blocks")),
        Part("activations, within blocks", in_block * (1 if work.checkpointing else g.layers), 0, inside),
        Part("a block's gradients on their way", 2 * tokens * g.intermediate * compute, 0, ("blocks",)),
        Part("one chunk of the LM head", (2 + several) * min(logits, chunk) * 4, 0, ("LM head",)),
        Part("the head's gradient, a chunk's and their sum", g.vocab * g.hidden * (1 + several) * master, 0,
             ("LM head",)),
    ]
    if not work.fsdp:                                   # a matrix has a micro-batch's gradient and the sum of them
        if compute < master:                            # weights are rounded in every pass, and kept for the backward
            found += [Part("rounded weights of the head", g.vocab * g.hidden * compute, 0, ("LM head",)),
                      Part("rounded weights of the blocks", block * compute * (2 if work.checkpointing else g.layers),
                           0, inside)]
        # a tied matrix has one of the head and one of the embedding, before they are summed
        return [*found, Part("the largest gradient once more", largest * master * (1 + g.tied), 0, ("gradients",))]
    found += [Part("gathered by FSDP2: outer weights", root * compute, 0, UPDATE),
              Part("gathered by FSDP2: two blocks", 2 * block * (compute + master), 0, ("blocks",)),
              Part("gathered by FSDP2: outer gradients", root * (compute + master), 0, ("gradients",))]
    if work.reference:                                  # a root that had no backward pass stays gathered
        found.append(Part("gathered by FSDP2: the reference's outer weights", root * compute, 0, AFTER_LOADING))
    return found


def evaluation_parts(model: Transformer, work: Work, rows: int, tokens: int) -> list[Part]:
    """The parts of one rank of an evaluation by itself, so many rows at a time with so many tokens in all."""
    g = model.g
    total = sum(p.numel() for p in model.parameters())
    prompts = min(work.prompts * work.prompt_tokens, PREFILL_TOKENS)
    found = [
        Part("Python and libraries", *in_host(work, PROCESS_GB[work.gpu] * 1e9)),
        Part("policy", total * work.dtype.itemsize * (1 if work.gpu else 2), 0),
        Part("cache of keys and values", tokens * kv_bytes(g, work.dtype, work.gpu), 0, ("evaluation",)),
        Part("graphs: logits and the draw", row_bucket(rows, work.gpu) * g.vocab * (DRAW_BYTES + TOP_P_BYTES), 0,
             ("evaluation",)),
        Part("pass over the prompts", prompts * (2 * kv_bytes(g, work.dtype, work.gpu) + pass_bytes(g, work.dtype)), 0,
             ("evaluation",)),
        *embedder_parts(work),
    ]
    return [part for part in found if part.gpu or part.host]


# ------------------------------------------------------------------------------------------------ sums


def peaks(found: Sequence[Part]) -> dict[str, int]:
    """Bytes on the GPU in each phase."""
    return {phase: sum(part.gpu for part in found if phase in part.phases) for phase in PHASES}


def host_peak(found: Sequence[Part]) -> int:
    """Bytes in host memory in the phase with most."""
    return max(sum(part.host for part in found if phase in part.phases) for phase in PHASES)


def peak_gb(device: torch.device) -> float:
    """Peak memory of this process so far in GB (10^9 bytes): allocated on its GPU, or resident without one."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    status = Path("/proc/self/status")                  # rusage begins with what the process had that started this one
    if status.is_file() and (peak := re.search(r"^VmHWM:\s+(\d+) kB$", status.read_text(), re.M)):
        return int(peak[1]) * 1024 / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def table(found: Sequence[Part], phases: Sequence[str] = PHASES) -> str:
    """Every part with its bytes in GB (10^9) and the phases it exists in, and the sum of each of `phases`."""
    def line(name: str, gpu: int, host: int = 0, when: str = "") -> str:
        shown = (f"{size / 1e9:.3f}" if size else "" for size in (gpu, host))
        return "{:<46}{:>9}{:>9}   {}".format(name, *shown, when).rstrip()

    def when(phases: tuple[str, ...]) -> str:
        missing = [phase for phase in PHASES if phase not in phases]
        if len(missing) <= 2:
            return "but for " + " and ".join(missing) if missing else ""
        return ", ".join(phases).replace(", ".join(UPDATE), "update")

    return "\n".join([
        "{:<46}{:>9}{:>9}".format("one rank, GB, estimated", "GPU", "host"),
        *(line(part.name, part.gpu, part.host, when(part.phases)) for part in found),
        *(line(f"in all, {phase}", size) for phase, size in peaks(found).items() if phase in phases),
    ])
