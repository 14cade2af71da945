"""Diagonal state-space layers that start from HiPPO by perturb-then-diagonalise: S4-PTD and S5-PTD.

Each channel (S4D) or the whole layer (``mimo``, S5) carries a complex state ``x' = diag(lam) x + B u`` from sample to
sample, ``y = Re(C x) + D u``, exact for inputs that are constant over a step ``dt`` (zero-order hold)::

    x[l] = exp(dt lam) x[l - 1] + dt phi(dt lam) B u[l],        phi(z) = (exp(z) - 1) / z

Training takes it as a convolution through the FFT, or as a parallel scan; generation step by step. All compute the
same. What is new is where ``lam``, ``B`` and ``C`` start; see :func:`hadamard.layers.ptd`.

References
----------
A. Yu, A. Nigmetov, D. Morozov, M. W. Mahoney, N. B. Erichson, "Robustifying State-space Models for Long Sequences via
Approximate Diagonalization", ICLR 2024, arXiv:2310.01698.
"""

from math import inf, log
from typing import Any

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor, nn

from hadamard.layers._recurrence import enter, exponential_sum, hold, leave, leave_channels, linear_scan
from hadamard.layers._ssm_start import INITS, start
from hadamard.spectral.convolution import Spectrum, convolve, correlate, spectrum
from hadamard.spectral.fft import good_size
from hadamard.validation import check_option, check_range, check_tensor

__all__ = ["DiagonalSSM"]

_STATES = 1 << 24  # complex numbers held at once by a scan without gradient


class DiagonalSSM(nn.Module):
    """Sequence layer (B, L, H) to (B, L, H) with a diagonal state; takes the place of S4D and S5 layers.

    Parameters
    ----------
    d_model
        Channels H.
    d_state
        Real states ``n``: of each channel, or of the layer where ``mimo``. One complex mode is kept of each conjugate
        pair, ``(n + 1) // 2`` in all; ``"ptd"`` has two real modes where ``n`` is even, and so one more.
    init
        ``"ptd"``: HiPPO-LegS, perturbed by ``eps`` and diagonalised. ``"s4d-legs"``: HiPPO-LegS without its rank-one
        term, with half its ``B`` (S4D). ``"s5"``: the same, with random ``B`` (S5). ``"s4d-lin"``, ``"s4d-inv"``: the
        formulas of S4D.
    mimo
        One state for all channels, with a matrix ``B`` (n, H) in and ``C`` (H, n) out, both random as in S5, whatever
        ``init``; ``"ptd"`` is then S5-PTD. Otherwise a state for each channel, as in S4D.
    blocks
        With ``mimo``: the state is that many copies of a system of ``d_state / blocks`` states.
    eps
        Size of the perturbation for ``"ptd"``, in the 2-norm, see :func:`hadamard.layers.ptd`: with the optimised
        perturbation 0.1 moves the transfer function by 1 to 3 % of its maximum, and in proportion. Below 0.001
        rounding in float32 takes over.
    dt_min, dt_max
        Step sizes are drawn between them, uniform in the logarithm: one a channel, or one a mode where ``mimo``.
    bidirectional
        Add a second output matrix that reads a state running from the end. Both directions see the current sample.
    mode
        How sequences are computed: ``"conv"``, ``"scan"``, or ``"auto"``, which convolves unless a state or a varying
        step asks for the scan, and scans where ``mimo``: with a single state for all channels that is faster.
    generator
        Draws ``B``, ``C``, ``D`` and the steps, on the CPU; the perturbation is the same for all layers of a size.
    device, dtype
        Of the parameters. Half precision, and inputs under autocast, are computed in float32.

    Raises
    ------
    ValueError
        If an option is out of range.

    Notes
    -----
    Train ``dynamics()`` with a small rate (at most 1e-3) and without weight decay, as S4D and S5 do. ``Re lam < 0``
    always holds: it is ``-exp(log_A_real)``. The paper reports no sizes of ``E`` but relative to ``||A||`` (0.01 to 1,
    optimised); here ``eps`` is absolute, since a relative one makes HiPPO unstable long before.

    Do not use it for what depends on the content of the sequence (copying, recall: attention or a selective model), for
    sequences of a few dozen samples, where attention costs no more. Do not use ``"ptd"`` where inputs carry no strong
    oscillations near the spikes of S4D: on clean digits ``"s4d-legs"`` learned more with the same budget. Its start
    costs an optimisation for each ``d_state`` and process: half a second at 64, seconds from 128 on.

    References
    ----------
    Yu et al., ICLR 2024, arXiv:2310.01698; S4D: arXiv:2206.11893; S5: arXiv:2208.04933.

    Examples
    --------
    >>> layer = DiagonalSSM(4, 16, generator=torch.Generator().manual_seed(0))
    >>> u = torch.randn(2, 100, 4)
    >>> y, state = layer(u, return_state=True)
    >>> next_y, state = layer.step(torch.randn(2, 4), state)
    >>> y.shape, next_y.shape, torch.allclose(layer(u), y, atol=1e-4)
    (torch.Size([2, 100, 4]), torch.Size([2, 4]), True)
    """

    _spectra: tuple[list[Tensor], dict[tuple[int, float], list[tuple[Tensor, Spectrum]]]] | None

    def __init__(
        self, d_model: int, d_state: int = 64, *, init: str = "ptd", mimo: bool = False, blocks: int = 1,
        eps: float = 0.1, dt_min: float = 1e-3, dt_max: float = 1e-1, bidirectional: bool = False, mode: str = "auto",
        generator: torch.Generator | None = None, device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.d_model = check_range(d_model, "d_model", 1, integer=True)
        self.d_state = check_range(d_state, "d_state", 1, integer=True)
        self.init = check_option(init, "init", INITS)
        self.mode = check_option(mode, "mode", ("auto", "conv", "scan"))
        check_range(eps, "eps", 0, None, closed="neither")
        check_range(dt_min, "dt_min", 0, None, closed="neither")
        check_range(dt_max, "dt_max", dt_min)
        check_range(blocks, "blocks", 1, integer=True)
        if d_state % blocks or (blocks > 1 and not mimo):
            raise ValueError(f"blocks must divide d_state={d_state}, and be 1 without mimo, got {blocks}")
        self.mimo, self.bidirectional, self.eps = mimo, bidirectional, eps
        lam, B, C = start(d_model, d_state, init, mimo, blocks, eps, 1 + bidirectional, generator)
        steps = torch.rand(len(lam) if mimo else d_model, generator=generator, dtype=torch.float64)
        lam = lam if mimo else lam.expand(d_model, -1)

        def parameter(x: Tensor) -> nn.Parameter:
            return nn.Parameter(x.to(device=device, dtype=dtype or torch.get_default_dtype()).contiguous())

        self.log_A_real = parameter((-lam.real).log())
        self.A_imag = parameter(lam.imag)
        self.B = parameter(torch.view_as_real(B))
        self.C = parameter(torch.view_as_real(C))
        self.D = parameter(torch.randn(d_model, generator=generator, dtype=torch.float64))
        self.log_dt = parameter(log(dt_min) + steps * (log(dt_max) - log(dt_min)))
        self._spectra = None

    def dynamics(self) -> list[nn.Parameter]:
        """The parameters of the state, ``lam``, ``B`` and ``dt``: train them slowly, without weight decay."""
        return [self.log_A_real, self.A_imag, self.B, self.log_dt]

    def forward(
        self,
        u: Float[Tensor, "batch length channels"],
        step_scale: float | Float[Tensor, " batch"] | Float[Tensor, "batch length"] = 1.0,
        *,
        state: Complex[Tensor, "batch *modes"] | None = None,
        lengths: Int[Tensor, " batch"] | None = None,
        return_state: bool = False,
    ) -> Any:
        """Run over sequences.

        Parameters
        ----------
        u
            Sequences (B, L, H).
        step_scale
            Factor on all step sizes: a number (a sampling rate other than that of training), one a sequence, or one a
            sample, (B, L), for irregular sampling: the time for which each sample holds, in both directions. At least
            0; at 0 the state stands still.
        state
            State after what came before, as returned; zero if it is not given.
        lengths
            Number of valid samples of each sequence; what comes after is ignored, its output is 0, and the state
            returned is the one after the last valid sample.
        return_state
            Also return the state at the end.

        Returns
        -------
        Tensor, or Tensor and Tensor
            Outputs (B, L, H) in the dtype of ``u``; with ``return_state`` also the state, complex, (B, H, modes), or
            (B, modes) where ``mimo``.

        Raises
        ------
        TypeError
            If an argument has another dtype.
        ValueError
            If a shape does not fit, ``step_scale`` is negative or not finite, ``lengths`` are out of range, or what is
            asked for needs the scan in ``mode="conv"``, or a single direction in a bidirectional layer.
        """
        several = isinstance(step_scale, Tensor) and step_scale.ndim > 0
        if self.mode == "conv" and (several or state is not None or return_state):
            raise ValueError("mode must be 'scan' or 'auto' for a state or a step_scale of several numbers, got 'conv'")
        scan = self.mode == "scan" or (
            self.mode == "auto" and (self.mimo or several or state is not None or return_state)
        )
        y, end = self._run(u, step_scale, state, lengths, scan, return_state)
        return (y, end) if return_state else y

    def step(
        self,
        u: Float[Tensor, "batch channels"],
        state: Complex[Tensor, "batch *modes"] | None = None,
        step_scale: float | Float[Tensor, " batch"] = 1.0,
    ) -> tuple[Float[Tensor, "batch channels"], Complex[Tensor, "batch *modes"]]:
        """One sample further: the output and the next state, as ``forward`` would give them."""
        if self.bidirectional:
            raise ValueError("bidirectional layers have no step: they need the sequence's end")
        scale = step_scale[:, None] if isinstance(step_scale, Tensor) else step_scale
        y, end = self._run(u[:, None], scale, state, None, True, True)
        assert end is not None
        return y[:, 0], end

    def initial_state(self, batch: int) -> Complex[Tensor, "batch *modes"]:
        """The state before anything was seen: zeros."""
        shape = self.log_A_real.shape
        return torch.zeros(batch, *shape, dtype=_compute(self.D.dtype).to_complex(), device=self.D.device)

    def kernel(self, length: int, step_scale: float = 1.0) -> Float[Tensor, "*out length"]:
        """Response to an impulse without ``D``: (H, L), with ``mimo`` (H_out, H_in, L); two of them if bidirectional.

        Parameters
        ----------
        length
            Number of samples, at least 1.
        step_scale
            Factor on all step sizes.
        """
        check_range(length, "length", 1, integer=True)
        z, held, B, C = self._discrete(step_scale)
        weights = C[:, :, None] * (B.mT * held) if self.mimo else C * B * held
        K = exponential_sum(weights, z, length)
        return K if self.bidirectional else K[0]

    def train(self, mode: bool = True) -> "DiagonalSSM":
        """As of any module; cached spectra are dropped."""
        self._spectra = None
        return super().train(mode)

    def extra_repr(self) -> str:
        """The options."""
        more = "".join(f", {name}=True" for name in ("mimo", "bidirectional") if getattr(self, name))
        return f"{self.d_model}, d_state={self.d_state}, init={self.init!r}{more}, mode={self.mode!r}"

    def _run(
        self, u: Tensor, step_scale: float | Tensor, state: Tensor | None, lengths: Tensor | None, scan: bool,
        return_state: bool,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """Check the arguments, compute outputs and, in a scan, the state at the end."""
        check_tensor(u, "u", ndim=3, shape=(None, None, self.d_model), dtype="floating")
        dtype = _compute(self.D.dtype)
        if _compute(u.dtype) != dtype:
            raise TypeError(f"u must have the layer's dtype {self.D.dtype} or half precision, got {u.dtype}")
        if isinstance(step_scale, Tensor) and step_scale.ndim > 0:
            check_tensor(step_scale, "step_scale", ndim=(1, 2), dtype="floating")
            if tuple(step_scale.shape) not in (u.shape[:1], u.shape[:2], (len(u), 1)):
                raise ValueError(f"step_scale must have shape (B,) or (B, L), got {tuple(step_scale.shape)}")
        if not torch.compiler.is_compiling():
            check_range(step_scale, "step_scale", 0, inf, closed="left", elementwise=True)
        if state is not None:
            check_tensor(state, "state", shape=(len(u), *self.log_A_real.shape), dtype="complex")
        if self.bidirectional and (state is not None or return_state):
            raise ValueError("state and return_state must not be given to a bidirectional layer: it has none")
        x, valid = u.to(dtype), None
        if lengths is not None:
            check_tensor(lengths, "lengths", ndim=1, shape=(len(u),), dtype="integer")
            if not torch.compiler.is_compiling():
                check_range(lengths, "lengths", 0, u.shape[1], elementwise=True)
            valid = torch.arange(u.shape[1], device=u.device) < lengths[:, None]
            x = x * valid[..., None]
        end = None
        with torch.autocast(u.device.type, enabled=False):
            if scan:
                y, end = self._scan(x, step_scale, state, valid if return_state else None)
            else:
                y = self._convolve(x, float(step_scale))
            y = torch.addcmul(y, x, self.D.to(dtype))
            y = (y if valid is None else y * valid[..., None]).to(u.dtype)
        return y, end

    def _discrete(self, step_scale: float | Tensor = 1.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``dt lam``, ``dt phi(dt lam)``, ``B`` and ``C``."""
        real, imag, log_dt = (_upcast(p) for p in (self.log_A_real, self.A_imag, self.log_dt))
        B, C = (torch.view_as_complex(_upcast(p)) for p in (self.B, self.C))
        dt = (log_dt if self.mimo else log_dt[:, None]).exp() * step_scale
        z = dt * torch.complex(-real.exp(), imag)
        return z, dt * hold(z), B, C

    def _convolve(self, u: Tensor, step_scale: float) -> Tensor:
        """Outputs from state 0 through the FFT: of each channel, or of each mode where ``mimo``."""
        kernels = self._kernels(u.shape[1], step_scale)
        if not self.mimo:
            y = convolve(u.mT, kernels[0][0], spectrum=kernels[0][1])
            if self.bidirectional:
                y = y + correlate(u.mT, kernels[1][0], spectrum=kernels[1][1])
            return y.mT
        _, held, B, C = self._discrete(step_scale)
        ((k, transform),) = kernels
        b = (held * enter(u, B)).mT
        y = leave(convolve(b, k, spectrum=transform).mT, C[0])
        if self.bidirectional:
            y = y + leave(correlate(b.conj(), k, spectrum=transform).conj().mT, C[1])
        return y

    def _kernels(self, length: int, step_scale: float) -> list[tuple[Tensor, Spectrum]]:
        """Kernels and their spectra; kept in evaluation for as long as the parameters have the same values."""

        def make() -> list[tuple[Tensor, Spectrum]]:
            if self.mimo:
                z = self._discrete(step_scale)[0]
                kernels = torch.exp(z[:, None] * torch.arange(length, device=z.device, dtype=z.real.dtype))[None]
            else:
                K = self.kernel(length, step_scale)
                kernels = K if self.bidirectional else K[None]
            size = good_size(2 * length - 1, real=not self.mimo)
            return [(k, spectrum(k, size, real=not self.mimo)) for k in kernels]

        if self.training or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return make()
        now = list(self.parameters())
        if self._spectra is None or not all(_same(a, b) for a, b in zip(self._spectra[0], now)):
            self._spectra = [p.detach().clone() for p in now], {}
        kept = self._spectra[1]
        if (length, step_scale) not in kept:
            kept.clear()
            kept[length, step_scale] = make()
        return kept[length, step_scale]

    def _scan(
        self, u: Tensor, step_scale: float | Tensor, state: Tensor | None, valid: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Outputs, and the state at the end, in pieces where no gradient needs the states of all times at once."""
        scale = torch.as_tensor(step_scale, dtype=u.dtype, device=u.device)
        scale = scale.reshape((*scale.shape, *[1] * (2 - scale.ndim)) if scale.ndim else (1, 1))
        if valid is not None:
            scale = scale * valid  # beyond the end the state stands still
        piece = u.shape[1]
        if not (torch.is_grad_enabled() or self.bidirectional):
            piece = max(1, _STATES // (len(u) * self.log_A_real.numel()))
        outputs = []
        for first in range(0, u.shape[1], piece):
            here = slice(first, first + piece)
            y, state = self._scan_piece(u[:, here], scale if scale.shape[1] == 1 else scale[:, here], state)
            outputs.append(y)
        assert state is not None
        return torch.cat(outputs, 1), state

    def _scan_piece(self, u: Tensor, scale: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        z, held, B, C = self._discrete(scale[..., None] if self.mimo else scale[..., None, None])
        b = held * (enter(u, B) if self.mimo else B * u[..., None])
        a = z.exp()
        read = leave if self.mimo else leave_channels
        first = b if state is None else torch.cat([b[:, :1] + a[:, :1] * state[:, None].to(b.dtype), b[:, 1:]], 1)
        x = linear_scan(a, first)
        y = read(x, C[0])
        if self.bidirectional:
            y = y + read(linear_scan(a, b, True), C[1])
        return y, x[:, -1]


def _compute(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def _upcast(x: Tensor) -> Tensor:
    return x.to(_compute(x.dtype))


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)
