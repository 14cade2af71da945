"""Rules that aggregate gradients: what the flag aggregator is compared with, and its decomposition as published.

Each takes gradients of shape (p, n) and the number f of faulty workers that it is told.
"""

import torch
from torch import Tensor

__all__ = ["bulyan", "decomposed", "geometric_median", "median", "multi_krum", "trimmed_mean"]


def median(G: Tensor, f: int = 0) -> Tensor:
    """The median of each coordinate; of an even number of workers, the mean of the middle two."""
    p = len(G)
    return G.sort(0).values[(p - 1) // 2 : p // 2 + 1].mean(0)


def trimmed_mean(G: Tensor, f: int) -> Tensor:
    """The mean of each coordinate without its f smallest and f largest."""
    return G.sort(0).values[f : len(G) - f].mean(0)


def multi_krum(G: Tensor, f: int) -> Tensor:
    """The mean of the p - f gradients that lie nearest to their p - f - 2 nearest others: the ones Krum likes best."""
    return G[_scores(_distances(G), f).topk(len(G) - f, largest=False).indices].mean(0)


def bulyan(G: Tensor, f: int) -> Tensor:
    """Krum picks p - 2f gradients one after another; of each coordinate, the p - 4f nearest the median are averaged."""
    D, left, picked = _distances(G), list(range(len(G))), []
    for _ in range(len(G) - 2 * f):
        near = max(len(left) - f - 2, 1)
        within = D[left][:, left].sort(1).values[:, 1 : near + 1] if len(left) > 1 else D[left][:, left]
        picked.append(left.pop(int(within.sum(1).argmin())))
    S = G[picked]
    middle = median(S)
    nearest = (S - middle).abs().topk(len(S) - 2 * f, dim=0, largest=False).indices
    return S.gather(0, nearest).mean(0)


def geometric_median(G: Tensor, f: int = 0, iterations: int = 20) -> Tensor:
    """The point whose distances to the gradients have the smallest sum, by Weiszfeld's iteration."""
    z = G.mean(0)
    for _ in range(iterations):
        weights = 1 / (G - z).norm(dim=1).clamp(min=1e-8)
        z = (weights / weights.sum()) @ G
    return z


def decomposed(G: Tensor, m: int, iterations: int, eps: float = 1e-7) -> Tensor:
    """The flag aggregate by a singular value decomposition of the n x p matrix in each iteration, as published."""
    X = torch.nn.functional.normalize(G, dim=1).T
    weights = torch.ones(len(G), dtype=G.dtype)
    for _ in range(iterations + 1):
        Y = torch.linalg.svd(X * weights.sqrt(), full_matrices=False)[0][:, :m]
        weights = 1 / (1 - (Y.T @ X).square().sum(0) + eps).clamp(min=eps).sqrt()
    return Y @ (Y.T @ X.mean(1)) * G.norm(dim=1).median()


def _distances(G: Tensor) -> Tensor:
    return torch.cdist(G, G, compute_mode="donot_use_mm_for_euclid_dist").square()


def _scores(D: Tensor, f: int) -> Tensor:
    return D.sort(1).values[:, 1 : len(D) - f - 1].sum(1)
