"""Seconds of DRA's arithmetic (similarity, SMI, adjustment) with graph cut and log-det, and log-det in other ways.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/reward.py [--prompts 64] [--group 16] [--size 384] [--threads 2] \\
        [--rounds 200] [--device cpu]

Contestants take turns, round by round, so that what else the machine does hits all of them; medians over rounds, the
ratio being the median of each round's. Embeddings are random with a mean, so that cosines are around 0.5; their size is
that of the default embedder. The error is the largest absolute difference to determinants in float64. "determinant per
row" is the SMI as it is defined, which the paper found 35 times slower than graph cut. Ours also checks for a missing
factor, as the others do not.
"""
import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))

from reward import adjust_rewards, cosine_similarity, graph_cut_smi, log_det_smi  # noqa: E402


def kernel(similarity_PGG: Tensor) -> Tensor:
    G = similarity_PGG.shape[-1]
    return torch.eye(G, dtype=similarity_PGG.dtype, device=similarity_PGG.device) + similarity_PGG


def from_inverse(K_PGG: Tensor, inverse_PGG: Tensor) -> Tensor:
    return (K_PGG.diagonal(dim1=-2, dim2=-1) * inverse_PGG.diagonal(dim1=-2, dim2=-1)).log()


def cholesky_inverse(similarity_PGG: Tensor) -> Tensor:
    K_PGG = kernel(similarity_PGG)
    return from_inverse(K_PGG, torch.cholesky_inverse(torch.linalg.cholesky_ex(K_PGG)[0]))


def inverse(similarity_PGG: Tensor) -> Tensor:
    K_PGG = kernel(similarity_PGG)
    return from_inverse(K_PGG, torch.linalg.inv_ex(K_PGG)[0])


def newton_schulz(similarity_PGG: Tensor) -> Tensor:
    """X <- 2 X - X K X: products only.

    The eigenvalues of K are in [1, 1 + G], so the error of X = 2 / (2 + G) is at most G / (2 + G), squared each time.
    """
    K_PGG = kernel(similarity_PGG)
    G = K_PGG.shape[-1]
    inverse_PGG, error = torch.eye(G, device=K_PGG.device).expand_as(K_PGG) * (2 / (2 + G)), G / (2 + G)
    while error > 1e-8:
        inverse_PGG, error = torch.baddbmm(inverse_PGG, inverse_PGG, K_PGG @ inverse_PGG, beta=2, alpha=-1), error**2
    return from_inverse(K_PGG, inverse_PGG)


def elimination(similarity_PGG: Tensor) -> Tensor:
    """G sweeps over all groups at once, the group being the last axis."""
    K_GGP = kernel(similarity_PGG).permute(1, 2, 0).contiguous()
    diagonal_GP = K_GGP.diagonal(dim1=0, dim2=1).T
    first_GP = diagonal_GP.clone()
    for k in range(len(K_GGP)):
        pivot_P, column_GP = K_GGP[k, k].clone(), K_GGP[k].clone()
        row_GP = column_GP / pivot_P
        K_GGP.addcmul_(column_GP[:, None], row_GP[None], value=-1)
        K_GGP[k], K_GGP[:, k], K_GGP[k, k] = row_GP, row_GP, -1 / pivot_P
    return (first_GP * -diagonal_GP).log().T


def determinants(similarity_PGG: Tensor) -> Tensor:
    """From Cholesky factors: with some numbers of threads torch.logdet (LU) of 255 x 255 is wrong on a CPU.

    oneMKL then says so on stderr.
    """
    def log_det(K_PGG: Tensor) -> Tensor:
        return 2 * torch.linalg.cholesky_ex(K_PGG)[0].diagonal(dim1=-2, dim2=-1).log().sum(-1)

    K_PGG = kernel(similarity_PGG)
    whole_P, rows = log_det(K_PGG), range(K_PGG.shape[-1])
    rest = [[j for j in rows if j != i] for i in rows]
    return torch.stack([K_PGG[:, i, i].log() + log_det(K_PGG[:, rest[i]][:, :, rest[i]]) - whole_P for i in rows], -1)


SMI = {"graph cut": graph_cut_smi, "log-det: Cholesky, triangular solve (ours)": log_det_smi,
       "log-det: Cholesky, cholesky_inverse": cholesky_inverse, "log-det: inv_ex": inverse,
       "log-det: Newton-Schulz": newton_schulz, "log-det: elimination, groups last": elimination,
       "log-det: determinant per row": determinants}


def medians(contestants: dict, rounds: int, device: str) -> dict[str, list[float]]:
    """Seconds of every round, contestants in turn; the first tenth of the rounds warms up."""
    times = {name: [] for name in contestants}
    for _ in range(rounds + rounds // 10 + 1):
        for name, function in contestants.items():
            start = time.perf_counter()
            function()
            if device != "cpu":
                torch.cuda.synchronize()
            times[name].append(time.perf_counter() - start)
    return {name: seconds[rounds // 10 + 1 :] for name, seconds in times.items()}


def show(title: str, times: dict[str, list[float]], error: dict[str, float]) -> None:
    print(f"\n{title:<46}{'median':>10}{'fastest':>10}{'slowest':>10}   / {next(iter(times))}")
    base = next(iter(times.values()))
    for name, seconds in times.items():
        ratio = statistics.median(mine / its for mine, its in zip(seconds, base))
        micro = "".join(f"{value * 1e6:>7.0f} us" for value in (statistics.median(seconds), min(seconds), max(seconds)))
        print(f"   {name:<43}{micro}{ratio:>9.2f}" + (f"   error {error[name]:.0e}" if name in error else ""))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    for name, value in (("prompts", 64), ("group", 16), ("size", 384), ("threads", 2), ("rounds", 200)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    generator = torch.Generator().manual_seed(0)
    embeddings = (torch.randn(args.prompts, args.group, args.size, generator=generator) + 1).to(args.device)
    rewards = (torch.rand(args.prompts, args.group, generator=generator) > 0.5).float().to(args.device)
    similarity = cosine_similarity(embeddings)
    print(f"torch {torch.__version__}, {args.device}, {args.threads} threads; {args.prompts} prompts x {args.group} "
          f"completions, embeddings of {args.size}")
    whole = {smi: lambda smi=smi: adjust_rewards(rewards, cosine_similarity(embeddings), smi=smi)
             for smi in ("graph_cut", "log_det")}
    show("similarity + SMI + adjustment", medians(whole, args.rounds, args.device), {})
    exact = determinants(similarity.double())
    error = {name: (function(similarity) - exact).abs().max().item() for name, function in SMI.items()
             if name != "graph cut"}
    show("SMI alone", medians({name: lambda function=function: function(similarity) for name, function in SMI.items()},
                              max(1, args.rounds // 10), args.device), error)


if __name__ == "__main__":
    main()
