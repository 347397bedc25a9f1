"""GPUs by name: memory, bandwidth and speed of products, from their makers' data sheets; and the one of this machine.

Figures are those of dense products without sparsity, summed in float32. Memory is what the name of the product says, in
10^9 bytes; drivers report up to 7 % more.
"""
from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class Gpu:
    name: str
    memory: float                                       # bytes
    bandwidth: float                                    # bytes a second
    bf16: float                                         # FLOP a second, 0 for a GPU without bfloat16
    fp32: float
    source: str = ""

    def flops(self, dtype: torch.dtype) -> float:
        """FLOP a second of products in `dtype`; 0 where the table has none."""
        return {torch.bfloat16: self.bf16, torch.float32: self.fp32}.get(dtype, 0.0)


GPUS = {key: Gpu(name, memory * 1e9, bandwidth * 1e9, bf16 * 1e12, fp32 * 1e12, source)
        for key, name, memory, bandwidth, bf16, fp32, source in (
    # key          name                 GB   GB/s   bf16  fp32   TFLOP/s
    ("b200",       "B200",              180, 8000, 2250,  75,    "NVIDIA DGX B200 datasheet, an eighth of it"),
    ("h200",       "H200 SXM",          141, 4800, 989,   67,    "NVIDIA H200 datasheet"),
    ("h100",       "H100 SXM",          80,  3350, 989,   67,    "NVIDIA H100 datasheet"),
    ("h100-pcie",  "H100 PCIe",         80,  2000, 756,   51,    "NVIDIA H100 datasheet"),
    ("a100-80",    "A100 80 GB",        80,  2039, 312,   19.5,  "NVIDIA A100 datasheet, SXM"),
    ("a100-40",    "A100 40 GB",        40,  1555, 312,   19.5,  "NVIDIA A100 datasheet, SXM"),
    ("l40s",       "L40S",              48,  864,  362,   91.6,  "NVIDIA L40S datasheet"),
    ("a6000",      "RTX A6000",         48,  768,  155,   38.7,  "NVIDIA GA102 whitepaper"),
    ("5090",       "GeForce RTX 5090",  32,  1792, 209.5, 104.8, "NVIDIA RTX Blackwell whitepaper"),
    ("4090",       "GeForce RTX 4090",  24,  1008, 165.2, 82.6,  "NVIDIA Ada whitepaper"),
    ("3090",       "GeForce RTX 3090",  24,  936,  71,    35.6,  "NVIDIA GA102 whitepaper"),
    ("l4",         "L4",                24,  300,  121,   30.3,  "NVIDIA L4 datasheet"),
    ("a10g",       "A10G",              24,  600,  70,    35,    "AWS G5 instances, NVIDIA A10G"),
    ("4080",       "GeForce RTX 4080",  16,  717,  97.5,  48.7,  "NVIDIA Ada whitepaper"),
    ("t4",         "Tesla T4",          16,  320,  0,     8.1,   "NVIDIA T4 datasheet; no bfloat16"),
    ("v100",       "Tesla V100",        16,  900,  0,     15.7,  "NVIDIA V100 datasheet; no bfloat16"),
)}


def named(key: str) -> Gpu:
    """The GPU that --gpu names; ValueError listing those that are known."""
    if key.lower() not in GPUS:
        raise ValueError(f"--gpu {key!r} is not known; known: {', '.join(GPUS)}")
    return GPUS[key.lower()]


def of_this_machine(device: torch.device) -> Gpu:
    """The GPU `device`, with its own memory; where the table does not have it, without speeds."""
    properties = torch.cuda.get_device_properties(device)
    words = set(properties.name.replace("-", " ").split())          # such as "NVIDIA A100-SXM4-80GB"

    def model(gpu: Gpu) -> set[str]:
        return set(gpu.name.split()) - {"SXM", "80", "40", "GB"}

    # of several that the name says, the one of most words, and then of nearest memory
    found = sorted((gpu for gpu in GPUS.values() if model(gpu) <= words),
                   key=lambda gpu: (-len(model(gpu)), abs(gpu.memory - properties.total_memory)))
    known = found[0] if found else Gpu("", 0, 0, 0, 0)
    return replace(known, name=properties.name, memory=float(properties.total_memory))
