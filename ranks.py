"""What has to do with ranks: starting them, sums over them, sharding a model, and stopping together.

Everything works without a process group too: then there is one rank, and nothing is summed or sharded.
"""
import ctypes
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import (
    CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard, register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor

import files
from model import Transformer

LAUNCHER_ANSWERS = timedelta(seconds=30)


def is_first_rank() -> bool:
    """Known from the launcher's environment, before the process group starts."""
    return os.environ.get("RANK", "0") == "0"


def start_ranks(offload: bool = False) -> tuple[int, int, torch.device]:
    """(rank, world, device); starts the process group where several ranks or FSDP2 need one.

    FSDP2 does offloading, on one rank too.
    """
    rank, world, local = (int(os.environ.get(key, default))
                          for key, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)))
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
        # cuDNN builds a plan for every new shape of attention, and micro-batches have new shapes in every step: 3 of
        # the 12.7 s of an update on an H200
        torch.backends.cuda.enable_cudnn_sdp(False)
        # sums of products in float32 throughout: in bfloat16 sampler and learner would round apart
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    else:
        keep_freed_memory()
    # sums of the host's figures, and offloaded weights, stay on the host
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    if world > 1:
        dist.init_process_group(backend, store=launcher_store(), rank=rank, world_size=world)
    elif offload:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    return rank, world, device


def keep_freed_memory() -> None:
    """Tells glibc to keep what tensors of up to 32 MB give back: getting it again costs a tenth of the tiny update.

    Larger ones go back at once. Kept too, they would make the peak of a large policy a seventh higher.
    """
    with suppress(AttributeError):                      # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-3, 2**25)                              # M_MMAP_THRESHOLD, its largest; smaller ones are the heap's
        mallopt(-1, -1)                                 # M_TRIM_THRESHOLD: the heap does not shrink


def launcher_store(patience: timedelta | None = None) -> dist.TCPStore | None:
    """The store that torchrun serves, None under another launcher.

    It starts before the ranks do, so if it does not answer, torchrun has died. By itself
    init_process_group would try for half an hour, and the first rank would hold the run's lock as long.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False,
                          timeout=patience or LAUNCHER_ANSWERS, wait_for_workers=False)
    store.set_timeout(timedelta(minutes=30))            # torch's own again: a rank may come much later than another
    return store


def leave(code: int) -> NoReturn:
    """Ends the process with this exit code, without finalising the interpreter where there is a process group.

    DTensor's caches keep a gloo group and its threads alive beyond `destroy_process_group`. A thread that releases its
    last tensor while the interpreter is being finalised cannot get the GIL and aborts the process (pytorch issue
    190489): one run in ten on two busy cores.
    """
    if not dist.is_initialized():
        sys.exit(code)
    if code == 0:                                       # a rank that failed must not wait for the others
        dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def run_main(main: Callable[[list[str]], int]) -> NoReturn:
    """Runs a script's main; what a user got wrong becomes one line on stderr, from one rank, and exit code 2."""
    try:
        code = main(sys.argv[1:])
    except Interrupted as signal_:                      # before the first step or sample: nothing has changed
        if first_to_report():
            print("interrupted", file=sys.stderr)
        code = 128 + signal_.signum
    except ValueError as error:
        if first_to_report():
            print(f"error: {error}", file=sys.stderr)
        code = 2
    except Exception:                                   # a defect of ours: one traceback, not one from every rank
        if first_to_report():
            traceback.print_exc()
        code = 1
    leave(code)


def first_to_report() -> bool:
    """Whether no other rank has asked this before.

    Before the process group exists, all ranks of a node see the same mistake, and one of them reports it.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return os.environ.get("LOCAL_RANK", "0") == "0"
    try:                                                # torchrun's store outlives the ranks
        store = launcher_store(timedelta(seconds=3))
        return store is None or store.add("reports", 1) == 1
    except RuntimeError:
        return True                                     # twice rather than never


def of_rank() -> str:
    """How a message of this rank begins where there are several."""
    return f"rank {dist.get_rank()}: " if dist.is_initialized() and dist.get_world_size() > 1 else ""


def sum_over_ranks(values: Sequence[float], op=dist.ReduceOp.SUM) -> list[float]:
    """Elementwise sum (or another reduction) over ranks, in float64."""
    if not dist.is_initialized():
        return list(values)
    tensor = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(tensor, op)
    return tensor.tolist()


def max_over_ranks(value: float) -> float:
    return sum_over_ranks([value], dist.ReduceOp.MAX)[0]


def gather_over_ranks(items: list) -> list:
    """The lists of all ranks, concatenated in rank order, on every rank."""
    if not dist.is_initialized():
        return items
    parts: list = [None] * dist.get_world_size()
    dist.all_gather_object(parts, items)
    return [item for part in parts for item in part]


def full_weights(model: torch.nn.Module) -> Iterator[tuple[str, Tensor]]:
    """(name, whole parameter), one at a time; gathering a sharded one is collective: every rank iterates in full."""
    for name, parameter in model.named_parameters():
        whole = parameter.detach()
        if isinstance(whole, DTensor):                  # a gathered copy would not be pinned, where offloaded ones are
            whole = whole.to_local() if dist.get_world_size() == 1 else whole.full_tensor()
        yield name, whole


def shard(model: Transformer, dtype: torch.dtype, offload: bool = False) -> Transformer:
    """FSDP2 per block: parameters and their gradients are sharded over the ranks, computation runs in `dtype`.

    With `offload` they stay in host memory, and so do the optimizer's moments; each block's weights move to the device
    while it computes. One rank without offloading needs none of it and stays a plain module.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1 and not offload:
        return model
    precision = MixedPrecisionPolicy()
    if dtype != model.norm.weight.dtype:
        precision = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    place = CPUOffloadPolicy(pin_memory=torch.cuda.is_available()) if offload else OffloadPolicy()
    for block in model.blocks:
        fully_shard(block, mp_policy=precision, offload_policy=place)
    fully_shard(model, mp_policy=precision, offload_policy=place)
    register_fsdp_forward_method(model, "stream_logprobs")
    return model


class Interrupted(BaseException):
    """SIGINT or SIGTERM arrived."""

    def __init__(self, signum: int):
        self.signum = signum


class Stop:
    """What ends a run before its last step: SIGINT, SIGTERM or an error, on any rank; and what the run was doing then.

    A signal raises `Interrupted` where stopping is harmless: before the first step, and inside
    `with stop.interruptible(...)`, which holds only work without collectives. Elsewhere it is remembered, and
    `any_rank` has to be asked before such work begins: a `with` cannot leave out what is in it. An error inside is
    remembered too: a rank that left alone would leave the others waiting for it.
    """

    def __init__(self, where: str, less_memory: str):
        """For messages: `where` files are written, such as "run.dir = 'runs/a'"; `less_memory`: how to need less."""
        self.where, self.less_memory = where, less_memory
        self.signum, self.raise_at_once, self.doing = 0, True, "start"
        self.error: Exception | None = None
        self.processes: list[tuple[str, int]] = []      # of each rank: machine and process id
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, self.handle)

    def handle(self, signum: int, frame) -> None:
        self.signum = signum
        if self.raise_at_once:
            raise Interrupted(signum)

    @contextmanager
    def interruptible(self, doing: str, less_memory: str = "") -> Iterator[None]:
        """Work of this rank alone, named `doing`, which a signal or an error ends; `any_rank` tells of it."""
        self.doing = doing
        try:
            self.raise_at_once = True
            yield
        except Interrupted:
            pass
        except Exception as error:
            self.error = self.in_words(error, less_memory or self.less_memory)
        finally:
            self.raise_at_once = False

    def any_rank(self) -> bool:
        """Whether any rank was interrupted; if one had an error, all raise the first with its rank. Collective."""
        interrupted, failed = sum_over_ranks([self.signum > 0, self.error is not None])
        if not failed:
            return interrupted > 0
        messages = []
        if self.error:
            messages = [f"{of_rank()}{self.doing}: {self.error}"]
            if not isinstance(self.error, ValueError):  # a defect of ours
                traceback.print_exception(self.error)
        raise ValueError(gather_over_ranks(messages)[0]) from self.error

    def in_words(self, error: Exception, less_memory: str) -> Exception:
        """A ValueError that says what to do where memory or disk is full; else the error itself."""
        if isinstance(error, ValueError):
            return error
        if files.disk_is_full(error):
            return ValueError(f"{self.where}: no room left to write; make room, and the same command continues")
        if memory := full_memory(error):
            return ValueError(f"out of {memory}; {less_memory}")
        return error

    @contextmanager
    def users_errors(self) -> Iterator[None]:
        """Around all of a command's work: full memory, a full disk and a rank that has died become ValueErrors."""
        try:
            yield
        except Exception as error:
            if (known := self.in_words(error, self.less_memory)) is not error:
                raise ValueError(f"{of_rank()}{self.doing}: {known}") from error
            if isinstance(error, RuntimeError) and (dead := self.dead_ranks()):     # its connections broke
                raise ValueError(f"{self.doing}: rank {', '.join(map(str, dead))} has ended (killed, or out of "
                                 "memory); the same command continues") from error
            raise

    def know_processes(self) -> None:
        """Notes which process is which rank, for `dead_ranks`; collective."""
        self.processes = gather_over_ranks([(os.uname().nodename, os.getpid())])

    def dead_ranks(self) -> list[int]:
        """The ranks on this machine whose process has ended."""
        time.sleep(0.5)                                 # its connections close a moment before it ends
        return [rank for rank, (node, pid) in enumerate(self.processes) if node == os.uname().nodename
                and not is_running(pid)]


def full_memory(error: Exception) -> str | None:
    """Which memory an allocation found full: "GPU memory", "memory", or None for any other error."""
    if isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error) or "ALLOC_FAILED" in str(error):
        return "GPU memory"
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):     # the second is torch's, on a CPU
        return "memory"
    return None


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state != "Z"                             # a child of torchrun that has ended and was not waited for yet
    except ProcessLookupError:
        return False
    except FileNotFoundError:                           # no /proc on this system
        return True
