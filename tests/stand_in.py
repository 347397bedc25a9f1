"""A GPU made of host memory: the CUDA branches of the program run on a CPU, and what CUDA refuses is refused.

    with Gpu(gb=80) as gpu:                 # torch.cuda.is_available(), x.is_cuda, x.device.type == "cuda", graphs, ...
        model = Transformer.from_pretrained(folder, torch.float64, gpu.device)
        groups = Sampler(model, config, stop_ids=[7]).generate(prompts, 3, seed=(0, 0))
    assert not gpu.stale                    # no graph was replayed over memory that had been given back

A `GpuTensor` wraps a CPU tensor and says that it is on "cuda:0". Every operation that makes or takes one goes through
`Gpu.call`, which checks what the device would (places, captures, memory) and does it on the wrapped tensors. New memory
is full of nan. Ragged attention, which a CPU build lacks, is `flash_attention`, as torch 2.11 has it.

Not imitated: speed, streams (all work is done when a call returns), the rounding of GPU kernels, a graph's pool (its
memory counts while a tensor of the program holds it), pinned memory, several GPUs, FSDP2 and NCCL, tensors that change
their shape in place. `zeros_like` and its kin put nothing on the host for a GPU tensor.
"""
import itertools
import weakref
from collections.abc import Callable
from contextlib import ExitStack, contextmanager, nullcontext
from types import SimpleNamespace
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.torch_version import TorchVersion
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only, tree_unflatten

GPU, HOST = torch.device("cuda", 0), torch.device("cpu")
READS = {"_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2", "unique_dim"}


class Memory:
    """One allocation, which lasts while a tensor of the program refers to it."""

    def __init__(self, gpu: "Gpu", size: int):
        gpu.allocated += size
        self.gpu, self.size = gpu, size
        if gpu.allocated > gpu.total:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size:,} bytes next to "
                                         f"{gpu.allocated - size:,} of {gpu.total:,}")
        gpu.peak = max(gpu.peak, gpu.allocated)

    def __del__(self):
        self.gpu.allocated -= self.size


class GpuTensor(Tensor):
    """A tensor on the GPU: `inner` has its values, `memory` is what it keeps allocated."""
    __torch_function__ = torch._C._disabled_torch_function_impl
    device, is_cuda, is_cpu = property(lambda _: GPU), property(lambda _: True), property(lambda _: False)

    @staticmethod
    def __new__(cls, inner: Tensor, memory: Memory):
        layout = inner.size(), inner.stride(), inner.storage_offset()
        self = Tensor._make_wrapper_subclass(cls, *layout, dtype=inner.dtype)
        self.inner, self.memory = inner, memory
        return self

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        gpu = next(x.memory.gpu for x in tree_leaves((args, kwargs)) if isinstance(x, cls))
        return gpu.call(func, args, kwargs or {})

    def to(self, *args, **kwargs) -> Tensor:
        args = [kwargs.pop("device"), *args] if "device" in kwargs else args
        place = next((x for x in args if isinstance(x, (str, torch.device))), GPU)
        x = self if torch.device(place).type == "cuda" else self.cpu(kwargs.get("non_blocking", False))
        return Tensor.to(x, *(None if x is place else x for x in args), **kwargs)

    def cpu(self, non_blocking: bool = False) -> Tensor:
        self.memory.gpu.wait("a copy to the host", non_blocking)
        return self.inner.clone()

    def tolist(self) -> list:
        return self.cpu().tolist()

    def __repr__(self) -> str:
        return f"GpuTensor({self.inner!r})"


class Tape:
    """torch.cuda.CUDAGraph: a capture writes down calls with their tensors, a replay makes them on the same memory."""

    def __init__(self, gpu: "Gpu"):
        self.gpu, self.calls = gpu, []
        self.made: set[int] = set()                                 # storages allocated in the capture
        self.used: dict[int, tuple[weakref.ref, Tensor]] = {}       # the program's memory, by storage
        self.before: list[tuple] = []                               # while capturing: its contents

    def note(self, given: list[GpuTensor]) -> None:
        """Before a call: which of the program's memory it may read or write."""
        for x in given:
            if (key := storage(x.inner)) not in self.made and key not in self.used:
                self.used[key] = weakref.ref(x.memory), x.inner
                self.before.append((x.inner.untyped_storage(), x.inner.untyped_storage().clone()))

    def replay(self) -> None:
        assert self.calls and not self.gpu.tape, "a replay before a capture, or inside one"
        self.gpu.replays += 1
        self.gpu.stale += [f"memory of {tuple(x.shape)} {x.dtype} was given back after the capture"
                           for memory, x in self.used.values() if not memory()]
        with torch._C.DisableTorchFunction(), no_dispatch(), torch.inference_mode():
            for func, args, kwargs, made in self.calls:
                for old, new in zip(made, tree_leaves(func(*args, **kwargs))):
                    if old is not None:
                        old.copy_(new)


class Gpu(TorchDispatchMode):
    """The context in which there is one GPU of `gb` * 1e9 bytes, and torch says that it is 2.11.

    With `half_only` False ragged attention takes float32 and float64 too, so that tokens can be compared with a CPU's.
    """

    def __init__(self, gb: float = 80.0, half_only: bool = True, capability: tuple[int, int] = (9, 0)):
        super().__init__()
        self.device, self.total, self.half_only, self.capability = GPU, int(gb * 1e9), half_only, capability
        self.tape: Tape | None = None                               # the one that is being written
        self.allocated = self.peak = 0                              # bytes
        self.captures = self.replays = 0
        self.kernels = 0                                            # calls in the last capture, but for views
        self.waits = 0                                              # how often the host waited for the GPU
        self.pools, self.numbers = set(), itertools.count()         # pools that graphs were captured with
        self.stale: list[str] = []                                  # what replays used after it was given back

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False                                                # or the first call imports torch.compile

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return self.call(func, args, kwargs or {})

    def call(self, func: Callable, args: tuple, kwargs: dict):
        leaves, tree = tree_flatten((args, kwargs))
        given = [x for x in leaves if isinstance(x, GpuTensor)]
        if not given and not any(isinstance(x, torch.device) and x.type == "cuda" for x in leaves):
            return func(*args, **kwargs)
        name, hosts = func.overloadpacket.__name__, [x for x in leaves if isinstance(x, Tensor) and x.device == HOST]
        self.check(func, name, args, kwargs, given, hosts)
        if self.tape:
            self.tape.note(given)
        original = {id(getattr(x, "inner", x)): x for x in (*given, *hosts)}
        inner = [x.inner if isinstance(x, GpuTensor) else HOST if isinstance(x, torch.device) else x for x in leaves]
        args, kwargs = tree_unflatten(inner, tree)
        run = func
        if func == torch.ops.aten._flash_attention_forward.default:
            run, args = flash_attention, (self.half_only, *args)
        elif func == torch.ops.aten._flash_attention_backward.default:
            run = flash_attention_backward
        elif func == torch.ops.aten.mm.dtype:
            run = wide_mm
        out = run(*args, **kwargs)
        if not given and id(out) in original:
            out = out.clone()                                       # a move, which a CPU need not make
        bases = {storage(x.inner): x for x in given}
        made = [x if isinstance(x, Tensor) and storage(x) not in bases and id(x) not in original else None
                for x in tree_leaves(out)]
        new = [x for x in made if x is not None]
        if name.startswith(("empty", "new_empty")):
            _ = [x.fill_(float("nan")) for x in new if x.is_floating_point()]
        elif self.tape and (new or func._schema.is_mutable):
            self.tape.calls.append((run, args, kwargs, made))
        if self.tape:
            self.tape.made |= {storage(x) for x in new}

        def wrapped(x: Tensor) -> Tensor:
            if id(x) in original:
                return original[id(x)]
            base = bases.get(storage(x))
            memory = Memory(self, x.untyped_storage().nbytes()) if base is None else base.memory
            with torch.inference_mode(torch.is_inference_mode_enabled() if base is None else base.is_inference()):
                bases[storage(x)] = view = GpuTensor(x, memory)
            return view

        return tree_map_only(Tensor, wrapped, out)

    def check(self, func, name: str, args: tuple, kwargs: dict, given: list[Tensor], hosts: list[Tensor]) -> None:
        """Raises what CUDA raises for tensors in wrong places and inside a capture; counts what the host waits for."""
        if func.namespace != "aten":
            raise NotImplementedError(f"{func}: not known for a GPU of torch 2.11")
        indices = args[1] if name.startswith("index") and isinstance(args[1], (list, tuple)) else []
        if name in READS or any(x is not None and x.dtype == torch.bool for x in indices):
            self.wait(str(func))
        if not hosts:
            return
        if name == "copy_" and hosts[0] is args[0]:
            self.wait(str(func), kwargs.get("non_blocking", args[2:] == (True,)))
        elif name in ("copy_", "_to_copy", "to") or indices and hosts[0] is not args[0]:    # moved to the GPU
            if self.tape:
                raise RuntimeError("Cannot copy between CPU and CUDA tensors during CUDA graph capture unless the CPU "
                                   f"tensor is pinned ({func})")
        elif given and any(x.ndim or name.startswith("_fused_") for x in hosts if x.numel()):
            # without elements: what autograd puts for a missing gradient, here on the host
            raise RuntimeError("Expected all tensors to be on the same device, but found at least two devices, cuda:0 "
                               f"and cpu! ({func}, on the CPU: {[tuple(x.shape) for x in hosts]})")

    def wait(self, what: str, non_blocking: bool = False) -> None:
        if self.tape:
            raise RuntimeError(f"CUDA error: operation not permitted when stream is capturing: waiting for {what}")
        self.waits += not non_blocking

    @contextmanager
    def capture(self, tape: Tape, pool=None, stream=None, capture_error_mode: str = "global"):
        assert not self.tape and not tape.calls, "a capture inside a capture, or a second one of a graph"
        self.tape = tape
        self.pools.add(pool or self.pool())
        try:
            yield
        finally:
            self.tape = None
            with no_dispatch():
                for memory, contents in tape.before:                # a capture runs nothing
                    memory.copy_(contents)
            tape.before = []
        self.captures, self.kernels = self.captures + 1, len(tape.calls)

    def pool(self) -> tuple[int, int]:
        return 0, next(self.numbers)

    def __enter__(self) -> "Gpu":
        stream = SimpleNamespace(cuda_stream=0, wait_stream=lambda _: None, synchronize=lambda: self.wait("a stream"))
        cuda = dict(
            _lazy_init=lambda: None, is_available=lambda: True, device_count=lambda: 1,
            set_device=lambda _: None, device=lambda _: nullcontext(), empty_cache=lambda: None,
            synchronize=lambda _=None: self.wait("all work"),
            get_device_name=lambda _=None: "stand-in", get_device_capability=lambda _=None: self.capability,
            get_device_properties=lambda _=None: SimpleNamespace(name="stand-in", total_memory=self.total),
            Stream=lambda *_, **__: stream, current_stream=lambda _=None: stream, stream=nullcontext,
            CUDAGraph=lambda *_, **__: Tape(self), graph=self.capture, graph_pool_handle=self.pool,
            mem_get_info=lambda _=None: (self.total - self.allocated, self.total),
            memory_allocated=lambda _=None: self.allocated, memory_reserved=lambda _=None: self.allocated,
            max_memory_allocated=lambda _=None: self.peak,
            reset_peak_memory_stats=lambda _=None: setattr(self, "peak", self.allocated),
            get_rng_state=lambda _=None: torch.get_rng_state(),
            set_rng_state=lambda state, _=None: torch.set_rng_state(state))
        new_parameters = dict(get_overwrite_module_params_on_conversion=lambda: True)   # by module.to(device)
        self.patches = ExitStack()
        for context in (patch.multiple(torch.cuda, **cuda), patch.multiple(torch.__future__, **new_parameters),
                        patch.object(torch, "__version__", TorchVersion("2.11.0")), Driver()):
            self.patches.enter_context(context)
        return super().__enter__()

    def __exit__(self, *error) -> None:
        super().__exit__(*error)
        self.patches.close()


class Driver(TorchFunctionMode):
    """Calls for which torch asks a driver before any operation: which GPU "cuda" is, a tensor made from numbers."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.device:
            return func(*args, **kwargs)
        args = [GPU if isinstance(x, (str, torch.device)) and str(x) == "cuda" else x for x in args]
        device = GPU if str(kwargs.get("device")) == "cuda" else kwargs.get("device")
        if func is torch.tensor and device == GPU:
            return func(*args, **{**kwargs, "device": HOST}).to(GPU)
        return func(*args, **kwargs | ({"device": device} if device is not None else {}))


def storage(x: Tensor) -> int:
    return x.untyped_storage()._cdata


def wide_mm(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """aten::mm.dtype, which a CPU build lacks: products of half precision, summed in float32 and not rounded."""
    if dtype != torch.float32 or left.dtype not in (torch.float16, torch.bfloat16):
        raise RuntimeError("out_dtype must be the same as input dtype or fp32 for fp16/bf16 inputs")
    return left.float() @ right.float()


def flash_attention(half_only, query, key, value, cum_seq_q, cum_seq_k, max_q, max_k, dropout_p, is_causal,
                    return_debug_mask, *, scale=None, window_size_left=None, window_size_right=None, seqused_k=None,
                    alibi_slopes=None, **newer):
    """aten::_flash_attention_forward of torch 2.11 over ragged rows: queries (total, H, D), keys, values (total, K, D).

    A key past `max_k` raises RuntimeError, where the kernel leaves it out without a word.
    """
    (_, H, D), K = query.shape, key.shape[1]
    half = query.dtype in (torch.float16, torch.bfloat16) and query.dtype == key.dtype == value.dtype
    integers = [x for x in (cum_seq_q, cum_seq_k, seqused_k) if x is not None]
    others = window_size_left, window_size_right, alibi_slopes
    for refused, why in (
        (any(x is not None for x in newer.values()), f"torch 2.11 has no argument {' or '.join(newer)}"),
        (half_only and not half, f"FlashAttention only supports fp16 and bf16, not {query.dtype}"),
        (D % 8 or D > 256 or H % K, f"{H} heads of size {D} over {K}: not a multiple of 8 up to 256, or of {K}"),
        (any(x.dtype != torch.int32 or not x.is_contiguous() for x in integers), "lengths must be contiguous int32"),
        (any(x.stride(-1) != 1 for x in (query, key, value)), "the last dimension must be contiguous"),
        (dropout_p or return_debug_mask or any(x is not None for x in others), "not imitated"),
    ):
        if refused:
            raise RuntimeError(f"_flash_attention_forward: {why}")
    out = torch.empty_like(query)
    for i, (queries, keys) in enumerate(segments(cum_seq_q, cum_seq_k)):
        length, used = queries.stop - queries.start, keys.stop - keys.start
        if seqused_k is not None:
            used, keys = int(seqused_k[i]), slice(keys.start, keys.start + int(seqused_k[i]))
        if length > max_q or used > max_k:
            raise RuntimeError(f"_flash_attention_forward: row {i} has {length} queries, {used} keys; max_q is "
                               f"{max_q}, max_k {max_k}: the kernel would drop the rest without a word")
        if keys.stop > int(cum_seq_k[i + 1]) or int(cum_seq_k[i + 1]) > len(key):
            raise RuntimeError(f"_flash_attention_forward: row {i} uses {used} of {keys.start}.."
                               f"{int(cum_seq_k[i + 1])} of {len(key)} keys")
        weights = attention_weights(query[queries], key[keys], is_causal, scale)
        out[queries] = (weights @ heads(value[keys], H)).transpose(0, 1)
    return out, torch.empty(H, len(query)), torch.empty(2), torch.empty(0), torch.empty(0)


def flash_attention_backward(grad_out, query, key, value, out, logsumexp, cum_seq_q, cum_seq_k, max_q, max_k, dropout_p,
                             is_causal, rng_state, unused, *, scale=None, **newer):
    """aten::_flash_attention_backward for the same rows: a key's gradient is the sum over the heads that share it."""
    (_, H, D), K = query.shape, key.shape[1]
    grads = [torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32)) for x in (query, key, value)]
    for queries, keys in segments(cum_seq_q, cum_seq_k):
        weights = attention_weights(query[queries], key[keys], is_causal, scale)
        grad, attended = heads(grad_out[queries], H), heads(out[queries], H)
        inner = weights * (grad @ heads(value[keys], H).mT - (grad * attended).sum(-1, keepdim=True))
        inner = inner * (D ** -0.5 if scale is None else scale)
        grads[0][queries] = (inner @ heads(key[keys], H)).transpose(0, 1)
        for total, part in zip(grads[1:], (inner.mT @ heads(query[queries], H), weights.mT @ grad)):
            total[keys] = part.unflatten(0, (K, H // K)).sum(1).transpose(0, 1)
    return tuple(grad.to(x.dtype) for grad, x in zip(grads, (query, key, value)))


def segments(cum_seq_q: Tensor, cum_seq_k: Tensor) -> list[tuple[slice, slice]]:
    starts_q, starts_k = cum_seq_q.tolist(), cum_seq_k.tolist()
    return [(slice(*row[:2]), slice(*row[2:])) for row in zip(starts_q, starts_q[1:], starts_k, starts_k[1:])]


def heads(x: Tensor, H: int) -> Tensor:
    """(T, H or fewer, D) as (H, T, D), at least float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32)).repeat_interleave(H // x.shape[1], 1).transpose(0, 1)


def attention_weights(query: Tensor, key: Tensor, is_causal: bool, scale: float | None) -> Tensor:
    """(H, queries, keys); under a causal mask the last query sees all keys, the one before it all but the last."""
    H = query.shape[1]
    logits = heads(query, H) @ heads(key, H).mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    seen = torch.ones(len(query), len(key), dtype=torch.bool).tril(len(key) - len(query))
    return (logits.masked_fill(~seen, float("-inf")) if is_causal else logits).softmax(-1)
