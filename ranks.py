"""What has to do with ranks: starting them, sums over them, sharding a model, and stopping together.

Everything works without a process group too: then there is one rank, sums are what they are, and the model stays whole.
"""
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from model import Transformer


def is_first_rank() -> bool:
    """Known from the launcher's environment, before the process group starts."""
    return os.environ.get("RANK", "0") == "0"


def start_ranks(dtype: str) -> tuple[int, int, torch.device]:
    """(rank, world, device); starts the process group where several ranks, or mixed precision through FSDP2, need one."""
    rank, world, local = (int(os.environ.get(key, default)) for key, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)))
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if world > 1:
        dist.init_process_group("nccl" if cuda else "gloo")
    elif dtype == "bfloat16":
        dist.init_process_group("nccl" if cuda else "gloo", store=dist.HashStore(), rank=0, world_size=1)
    return rank, world, device


def leave(code: int) -> NoReturn:
    """Ends the process with this exit code, without finalising the interpreter where there is a process group.

    DTensor's caches keep a gloo group and its threads alive beyond `destroy_process_group`. A thread that releases its last tensor while the
    interpreter is being finalised asks for the GIL in vain and aborts the process (pytorch issue 190489): one run in ten on two busy cores.
    """
    if not dist.is_initialized():
        sys.exit(code)
    if code == 0:                                       # a rank that failed must not wait for the others
        dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def run_main(main: Callable[[list[str]], int]) -> NoReturn:
    """Runs a script's main; what a user got wrong becomes one line on stderr and exit code 2.

    Before the ranks have met, all of them see the same mistake and the first reports it; later ones say which rank they are.
    """
    try:
        code = main(sys.argv[1:])
    except ValueError as error:
        if is_first_rank() or str(error).startswith("rank "):
            print(f"error: {error}", file=sys.stderr)
        code = 2
    leave(code)


def sum_over_ranks(values: Sequence[float], op=dist.ReduceOp.SUM) -> list[float]:
    """Elementwise sum (or another reduction) over ranks, in float64."""
    if not dist.is_initialized():
        return list(values)
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
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
    """(name, whole parameter) one after the other; gathering a sharded one is collective, so every rank iterates in full."""
    for name, parameter in model.named_parameters():
        yield name, parameter.detach().full_tensor() if isinstance(parameter, DTensor) else parameter.detach()


def shard(model: Transformer, dtype: torch.dtype) -> Transformer:
    """FSDP2 per block: parameters and their gradients are spread over the ranks, computation runs in `dtype`.

    One rank in the master precision needs none of it and stays a plain module.
    """
    if not dist.is_initialized():
        return model
    precision = MixedPrecisionPolicy() if dtype == model.norm.weight.dtype else MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    for block in model.blocks:
        fully_shard(block, mp_policy=precision)
    fully_shard(model, mp_policy=precision)
    register_fsdp_forward_method(model, "token_logprobs")
    return model


class Interrupted(BaseException):
    """SIGINT or SIGTERM arrived."""


class Interrupt:
    """Turns SIGINT and SIGTERM into `Interrupted` where stopping is harmless, and remembers them where it is not.

    Harmless: before the first step, and inside `with interrupt.stoppable()`, which holds only work without collectives.
    """

    def __init__(self):
        self.signum, self.immediate = 0, True
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, self.handle)

    def handle(self, signum: int, frame) -> None:
        self.signum = signum
        if self.immediate:
            raise Interrupted

    @contextmanager
    def stoppable(self) -> Iterator[None]:
        try:
            self.immediate = True
            if self.signum:
                raise Interrupted
            yield
        except Interrupted:
            pass
        finally:
            self.immediate = False

    def any_rank(self) -> bool:
        """Whether any rank was interrupted; collective."""
        return max_over_ranks(self.signum) > 0
