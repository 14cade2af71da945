"""Where a diagonal state-space layer starts: modes, input and output matrices."""

from functools import lru_cache

import torch
from torch import Tensor

from hadamard.layers.ptd import PTD, conjugate_half, hippo, normal_part, ptd

__all__ = ["INITS", "start"]

INITS = ("ptd", "s4d-legs", "s4d-lin", "s4d-inv", "s5")
_C128 = torch.complex128


def start(
    channels: int, d_state: int, init: str, mimo: bool, blocks: int, eps: float, directions: int,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Modes (k,), ``B`` as (H, k) or with ``mimo`` (k, H), ``C`` as (directions, H, k), in complex128."""
    n = d_state // blocks

    def normal(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.randn(shape, dtype=dtype, generator=generator)

    parts = []
    for _ in range(blocks):
        fan_in, fan_out = (channels**-0.5, d_state**-0.5) if mimo else (1.0, 1.0)
        if init in ("s4d-lin", "s4d-inv"):
            k = torch.arange((n + 1) // 2, dtype=torch.float64)
            w = torch.pi * k if init == "s4d-lin" else n / torch.pi * (n / (2 * k + 1) - 1)
            lam = torch.complex(torch.full_like(w, -0.5), w)
            B = fan_in * normal(len(k), channels, dtype=_C128) if mimo else torch.ones(len(k), 1, dtype=_C128)
            C = 2 * fan_out * normal(directions * channels, len(k), dtype=_C128)
        else:
            if init == "ptd":
                found = _perturbed_hippo(n, eps)
                lam, V = found.lam, found.V
            else:
                lam, V = normal_part(n)
            legs = hippo(n)[1] * (1.0 if init == "ptd" else 0.5)
            given = fan_in * normal(n, channels) if mimo or init == "s5" else legs
            full = torch.linalg.solve(V, given.to(V)), fan_out * normal(directions * channels, n).to(V) @ V
            lam, B, C = conjugate_half(lam, *full)
        if init == "ptd":  # lengths of eigenvectors are free: neither side of a mode larger than the other
            s = (B.abs().square().mean(1) / C.abs().square().mean(0)).sqrt().sqrt()
            B, C = B / s[:, None], C * s
        parts.append((lam, B, C.view(directions, channels, -1)))
    lam, B, C = (torch.cat(x, d) for x, d in zip(zip(*parts), (0, 0, 2)))
    return lam, B if mimo else B.mT.expand(channels, -1), C


@lru_cache(maxsize=32)
def _perturbed_hippo(n: int, eps: float) -> PTD:
    """With 1 real eigenvalue at odd ``n`` and 2 at even ``n``, the commonest numbers, so that sizes are fixed."""
    for seed in range(100):
        found = ptd(hippo(n)[0], eps, optimize=True, generator=torch.Generator().manual_seed(seed))
        if int((found.lam.imag == 0).sum()) == 2 - n % 2:
            return found
    raise ValueError(f"eps must leave {2 - n % 2} real eigenvalue(s) at d_state={n}, got {eps}; take a smaller one")
