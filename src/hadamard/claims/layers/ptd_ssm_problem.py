"""Cases of the claim of ptd_ssm: transfer functions, the trap of a relative perturbation, a sine, and cost."""

from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import Any

import numpy as np
import scipy.linalg
import scipy.signal
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hadamard.layers import DiagonalSSM, hippo, ptd, transfer
from hadamard.layers.ptd import normal_part

__all__ = ["ATTENTION", "DENSE", "EIG", "LOOP", "OPTIMISED", "RANDOM", "S4D", "S5", "SCAN", "UNGUARDED"]
__all__ += ["Cost", "Sine", "Transfer", "Trap"]

RANDOM, OPTIMISED, S4D = "PTD, random E", "PTD, optimised E", "S4D-LegS"
EIG, UNGUARDED, DENSE = "eig of HiPPO", "perturbed, eig, no guard", "dense HiPPO recurrence (SciPy)"
SCAN, LOOP, S5, ATTENTION = "S5-PTD layer, scan", "step by step", "s5-pytorch", "attention layer"
_D = torch.float64


@dataclass(frozen=True)
class Transfer:
    """HiPPO's transfer function with random outputs, on a grid of frequencies refined at the modes of S4D."""

    n: int
    draws: int
    sizes: tuple[float, ...]
    seed: int

    @cached_property
    def outputs(self) -> Tensor:
        """One random row C."""
        return torch.randn(1, self.n, dtype=_D, generator=torch.Generator().manual_seed(self.seed))

    @cached_property
    def omega(self) -> Tensor:
        """Up to 20 n^2."""
        modes = normal_part(self.n)[0].imag
        near = (modes[modes > 0][:, None] + torch.linspace(-2, 2, 9, dtype=_D)).flatten()
        wide = torch.logspace(-2, np.log10(20 * self.n**2), 1200, dtype=_D)
        return torch.cat([wide, near]).clamp(min=1e-2).sort().values

    @cached_property
    def exact(self) -> Tensor:
        """The transfer function of HiPPO itself."""
        A, B = hippo(self.n)
        return transfer(A, B, self.outputs, self.omega).flatten()

    def __call__(self, kind: str) -> dict[str, Any]:
        """Largest deviation over all frequencies, absolute and of the largest gain, and the condition number."""
        A, B = hippo(self.n)
        if kind == EIG:
            return {"cond": float(np.linalg.cond(np.linalg.eig(A.numpy())[1]))}
        if kind == S4D:
            lam, V = normal_part(self.n)
            return self._read(lam, V.mH @ (B / 2).to(V), self.outputs.to(V) @ V) | {"cond": 1.0}
        found: dict[str, Any] = {"errors": [], "conds": []}
        sizes, count = ((0.01,), 1) if kind == OPTIMISED else (self.sizes, self.draws)  # a minimum needs no second draw
        for eps in sizes:
            draws = [
                ptd(A, eps, optimize=kind == OPTIMISED, generator=torch.Generator().manual_seed(i))
                for i in range(count)
            ]
            each = [self._read(d.lam, d.inputs(B), d.outputs(self.outputs)) for d in draws]
            found["errors"].append(median(e["error"] for e in each))
            found["conds"].append(median(d.cond for d in draws))
            if eps == 0.01:
                middle = sorted(each, key=lambda e: e["error"])[len(each) // 2]
                found |= middle | {"cond": found["conds"][-1], "backward error": max(d.backward_error for d in draws)}
        return found

    def _read(self, lam: Tensor, B: Tensor, C: Tensor) -> dict[str, Any]:
        G = transfer(lam, B, C, self.omega).flatten()
        error = (G - self.exact).abs()
        peak = float(self.exact.abs().max())
        return {"error": float(error.max()), "relative error": float(error.max()) / peak, "gain": G.abs()}


@dataclass(frozen=True)
class Trap:
    """Perturbations of 10 % of ||A||, which make HiPPO unstable."""

    sizes: tuple[int, ...]
    draws: int = 5

    def __call__(self, kind: str) -> dict[str, Any]:
        """Number of results that are unstable and were returned all the same, and the largest real part."""
        worst, bad = -np.inf, 0
        for n in self.sizes:
            for i in range(self.draws):
                generator, guard = torch.Generator().manual_seed(i), "ignore" if kind == UNGUARDED else "raise"
                try:
                    found = ptd(hippo(n)[0], 0.1, relative=True, unstable=guard, generator=generator)
                except ValueError:
                    continue
                bad += bool(found.lam.real.max() >= 0)
                worst = max(worst, float(found.lam.real.max()))
        return {"unstable": bad, "largest real part": worst if np.isfinite(worst) else None}


@dataclass(frozen=True)
class Sine:
    """Layers and the dense recurrence fed with a sine where S4D deviates most, until it is all that is left."""

    n: int
    dt: float
    seed: int
    channels: int = 2

    def _layer(self, init: str) -> DiagonalSSM:
        generator = torch.Generator().manual_seed(self.seed)
        options: dict[str, Any] = {"dt_min": self.dt, "dt_max": self.dt, "dtype": _D}
        layer = DiagonalSSM(self.channels, self.n, init=init, generator=generator, **options)
        with torch.no_grad():
            layer.D.zero_()
        return layer.eval()

    @cached_property
    def dense(self) -> tuple[np.ndarray, ...]:
        """Zero-order hold of HiPPO with the layers' C; the output sees the current sample."""
        A, B = (x.numpy() for x in hippo(self.n))
        C = torch.randn(
            self.channels, self.n, dtype=_D, generator=torch.Generator().manual_seed(self.seed)
        ).numpy()  # what the layers draw first
        both = scipy.linalg.expm(self.dt * np.block([[A, B], [np.zeros((1, self.n + 1))]]))
        a, b = both[:-1, :-1], both[:-1, -1:]
        return a, b, C @ a, C @ b

    @cached_property
    def omega(self) -> float:
        """Where the transfer functions of S4D and HiPPO differ most, below 0.9 of the Nyquist frequency."""
        A, B = hippo(self.n)
        lam, V = normal_part(self.n)
        C = torch.randn(self.channels, self.n, dtype=_D, generator=torch.Generator().manual_seed(self.seed))
        omega = torch.cat([lam.imag[lam.imag > 0], torch.linspace(0.1, 0.9 * np.pi / self.dt, 400, dtype=_D)])
        omega = omega[omega < 0.9 * np.pi / self.dt]
        G = transfer(A, B, C, omega)
        difference = (transfer(lam, V.mH @ (B / 2).to(V), C.to(V) @ V, omega) - G).abs().amax((1, 2))
        return float(omega[difference.argmax()])

    @cached_property
    def signal(self) -> Tensor:
        """25 units of time, in which the slowest mode, exp(-t/2), is gone."""
        return torch.sin(self.omega * self.dt * torch.arange(int(25 / self.dt), dtype=_D))

    def __call__(self, kind: str) -> dict[str, Any]:
        """The last quarter of the outputs."""
        if kind == DENSE:
            y = torch.from_numpy(scipy.signal.dlsim((*self.dense, self.dt), self.signal.numpy())[1])
        else:
            u = self.signal[None, :, None].expand(1, -1, self.channels)
            with torch.no_grad():
                y = self._layer("s4d-legs" if kind == S4D else "ptd")(u)[0]
        last = y[3 * len(y) // 4 :]
        a, b, c, d = self.dense
        z = np.exp(1j * self.omega * self.dt)
        response = (c @ np.linalg.solve(z * np.eye(self.n) - a, b) + d)[:, 0]
        time = np.arange(len(self.signal))[3 * len(y) // 4 :]
        wanted = torch.from_numpy(np.imag(response * np.exp(1j * self.omega * self.dt * time)[:, None]))
        return {"deviation": float((last - wanted).abs().max()), "amplitude": float(last.abs().max())}


@dataclass(frozen=True)
class Cost:
    """One forward pass over sequences of some length, all weights the same where the layers are the same."""

    batch: int
    length: int
    channels: int
    modes: int
    seed: int

    @cached_property
    def u(self) -> Tensor:
        """The sequences."""
        shape = (self.batch, self.length, self.channels)
        return torch.randn(shape, generator=torch.Generator().manual_seed(self.seed))

    @cached_property
    def peer(self) -> Any:
        """The layer of s5-pytorch with that many complex modes."""
        from s5 import S5 as Peer

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return Peer(self.channels, self.modes)

    @cached_property
    def ours(self) -> DiagonalSSM:
        """Ours, with the peer's weights."""
        layer, theirs = DiagonalSSM(self.channels, 2 * self.modes, init="s5", mimo=True), self.peer.seq
        with torch.no_grad():
            layer.log_A_real.copy_((-theirs.Lambda.real).log())
            layer.A_imag.copy_(theirs.Lambda.imag)
            layer.B.copy_(theirs.B)
            layer.C.copy_(torch.view_as_real(theirs.C.resolve_conj())[None])
            layer.D.copy_(theirs.D)
            layer.log_dt.copy_(theirs.log_step.flatten())
        return layer.eval()

    @cached_property
    def attention(self) -> tuple[nn.Module, nn.Module]:
        """The projections of causal attention with four heads."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return nn.Linear(self.channels, 3 * self.channels), nn.Linear(self.channels, self.channels)

    @torch.no_grad()
    def __call__(self, kind: str) -> Tensor:
        """The outputs."""
        if kind == ATTENTION:
            enter, leave = self.attention
            q, k, v = enter(self.u).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
            return leave(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        if kind == S5:
            return self.peer(self.u)
        if kind == LOOP:
            state, outputs = self.ours.initial_state(self.batch), []
            for t in range(self.length):
                y, state = self.ours.step(self.u[:, t], state)
                outputs.append(y)
            return torch.stack(outputs, 1)
        self.ours.mode = "scan" if kind == SCAN else "conv"
        return self.ours(self.u)
