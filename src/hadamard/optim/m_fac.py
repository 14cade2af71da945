"""M-FAC: natural-gradient steps from a window of gradients, without a matrix of the network's size.

The damped empirical Fisher matrix of the last m gradients, ``F = damp I + (1/m) G^T G`` with a gradient in each row of
G, is inverted in the space of the rows. The newest gradient g lies in the window itself, as row t say, so that its
natural gradient is a combination of the rows: ``F^{-1} g = m G^T (m damp I + G G^T)^{-1} e_t``. A step therefore reads
the window twice, once for the new column ``G g`` of the m x m Gram matrix and once to combine the rows.

References
----------
E. Frantar, E. Kurtic, D. Alistarh, "M-FAC: Efficient Matrix-Free Approximations of Second-Order Information", NeurIPS
2021, arXiv:2107.03356. The paper's dynamic algorithm updates an LU factorisation of the same matrix and applies it to
any vector, in three passes over the window; results agree to rounding.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from hadamard.lowrank import combine, gram, gram_cholesky
from hadamard.optim.memory import check_fits
from hadamard.validation import check_option, check_range

__all__ = ["MFAC"]


class MFAC(Optimizer):
    """Natural-gradient descent with a window of gradients; in place of ``torch.optim.SGD`` or Adam.

    Parameters
    ----------
    params
        Parameters, or groups of them. ``lr``, ``momentum`` and ``weight_decay`` may differ between groups.
    lr
        Learning rate, above 0.
    momentum
        Weight of the old average in the running mean of the natural gradients, in [0, 1): ``v = momentum v + (1 -
        momentum) F^{-1} g``, which is SGD's momentum with ``dampening=momentum``.
    weight_decay
        ``weight_decay * p`` is added to the gradient, as in SGD, before it enters the window.
    ngrads
        Gradients in the window, m; memory is that of m copies of the parameters (``window_bytes``).
    damp
        What is added to the Fisher matrix's diagonal, above 0. Gradients whose squared norm is below ``ngrads * damp``
        take steps like SGD's with the rate ``lr / damp``; above, the length of a step is about ``lr * ngrads / |g|``,
        which grows as gradients fall, so that training with a very small ``damp`` does not settle.
    window
        ``"global"``: one Fisher matrix over all groups. ``"per_group"``: one for each, cross terms ignored.
    warm
        While the window fills up: ``"full"`` divides the sum by ``ngrads`` as the paper does, so that first steps are
        long, about ``ngrads * lr / |g|``; ``"count"`` divides it by the number of gradients seen.
    sparse
        Keep entries that are exactly 0 when the parameter is added at 0: for the training of pruned networks.
    dtype
        Of the window; by default the parameters'. ``torch.bfloat16`` halves the memory.
    maximize
        Ascend instead of descend.
    check_finite
        Refuse NaN and infinite gradients, which would stay in the window for ``ngrads`` steps.

    Raises
    ------
    TypeError
        If a parameter is complex or a gradient is sparse.
    ValueError
        If an option is out of range, there is no parameter, or a gradient is not finite; parameters and window are
        then unchanged.
    MemoryError
        If the windows do not fit into the memory that is free; when the optimizer is made, and nothing is allocated.

    Notes
    -----
    A parameter without gradient enters the window as zero. If no parameter has one, nothing happens.

    The window is one matrix, ``state["window 0"]["gradients"]``, so its parameters must be on one device (with
    ``window="per_group"``, those of each group). The m x m matrix is kept in double precision, also for windows in
    half. ``state_dict`` holds both and resumes to the last bit.

    Not for networks whose parameters fit into memory only once or twice; there, AdamW.

    Examples
    --------
    >>> x = torch.zeros(2, requires_grad=True)
    >>> optimizer = MFAC([x], lr=0.1, ngrads=1, damp=1.0)
    >>> (3 * x[0] + 4 * x[1]).backward()
    >>> optimizer.step()  # the gradient (3, 4) becomes (3, 4) / (damp + 25)
    >>> x.detach()
    tensor([-0.0115, -0.0154])
    """

    state: Any  # by parameter, and by name for the windows

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        *,
        ngrads: int = 32,
        damp: float = 1e-5,
        window: str = "global",
        warm: str = "full",
        sparse: bool = False,
        dtype: torch.dtype | None = None,
        maximize: bool = False,
        check_finite: bool = True,
    ) -> None:
        self.ngrads = check_range(ngrads, "ngrads", 1, integer=True)
        self.damp = check_range(damp, "damp", 0, None, closed="neither")
        self.window = check_option(window, "window", ("global", "per_group"))
        self.warm = check_option(warm, "warm", ("full", "count"))
        if dtype is not None and not dtype.is_floating_point:
            raise TypeError(f"dtype must be floating, got {dtype}")
        self.sparse, self.dtype, self.check_finite = sparse, dtype, check_finite
        super().__init__(
            params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "maximize": maximize}
        )  # fmt: skip
        for groups in self._sharing():
            params = [p for group in groups for p in group["params"]]
            d = sum(p.numel() for p in params)
            check_fits(self.ngrads, d, self.dtype or params[0].dtype, params[0].device, "ngrads")

    @property
    def window_bytes(self) -> int:
        """Memory of all windows together, in bytes: allocated by the first step."""
        params = [p for group in self.param_groups for p in group["params"]]
        return self.ngrads * sum(p.numel() * (self.dtype or p.dtype).itemsize for p in params)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with options of their own; their gradients of the past count as zero."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            check_range(group["lr"], "lr", 0, None, closed="neither")
            check_range(group["momentum"], "momentum", 0, 1, closed="left")
            check_range(group["weight_decay"], "weight_decay", 0)
            for p in group["params"]:
                if not p.is_floating_point():
                    raise TypeError(f"parameters must be real and floating, got {p.dtype}")
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise
        if self.sparse:
            for p in group["params"]:
                self.state[p]["mask"] = p.detach() != 0

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Push the gradients into the window, and take one step along the newest one's natural gradient.

        Parameters
        ----------
        closure
            Evaluates the model again and returns the loss; called once.

        Returns
        -------
        loss
            What ``closure`` returned, or ``None``.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        windows = self._sharing()
        newest = [self._gradient(groups) for groups in windows]
        for number, (groups, g) in enumerate(zip(windows, newest)):
            if g is not None:
                self._step(f"window {number}", groups, g)
        return loss

    def _sharing(self) -> list[list[dict[str, Any]]]:
        """Groups by the window that they share."""
        return [self.param_groups] if self.window == "global" else [[group] for group in self.param_groups]

    def _step(self, name: str, groups: list[dict[str, Any]], g: Tensor) -> None:
        """One step of the groups that share a window."""
        shared = self._window(name, g)
        G, K, slot = shared["gradients"], shared["gram"], shared["count"] % self.ngrads
        G[slot] = g
        K[slot] = K[:, slot] = gram(G, G[slot : slot + 1])[:, 0]
        shared["count"] += 1
        m = self.ngrads if self.warm == "full" else min(shared["count"], self.ngrads)
        unit = torch.zeros_like(K[:, :1])
        unit[slot] = m
        direction = combine(torch.cholesky_solve(unit, gram_cholesky(K, m * self.damp))[:, 0], G)
        sizes = [p.numel() for group in groups for p in group["params"]]
        pieces = iter(direction.split(sizes))
        for group in groups:
            params = group["params"]
            updates = [next(pieces).view_as(p).to(p.dtype) for p in params]
            if group["momentum"]:
                averages = [self._average(p) for p in params]
                torch._foreach_lerp_(averages, updates, 1 - group["momentum"])
                updates = averages
            torch._foreach_add_(params, updates, alpha=-float(group["lr"]))

    def _window(self, name: str, g: Tensor) -> dict[str, Any]:
        """Gradients, their Gram matrix, and how many there were; parameters that joined later have zeros."""
        shared = self.state.get(name)
        if not shared:
            m, dtype = self.ngrads, self.dtype or g.dtype
            shared = self.state[name] = {
                "gradients": torch.zeros(m, len(g), dtype=dtype, device=g.device),
                "gram": torch.zeros(m, m, dtype=torch.float64, device=g.device),
                "count": 0,
            }
        missing = len(g) - shared["gradients"].shape[1]
        if missing:
            shared["gradients"] = torch.nn.functional.pad(shared["gradients"], (0, missing))
        return shared

    def _average(self, p: Tensor) -> Tensor:
        state = self.state[p]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p)
        return state["momentum_buffer"]

    def _gradient(self, groups: list[dict[str, Any]]) -> Tensor | None:
        """What enters the window: gradients plus weight decay, masked, as one vector; none where none has any."""
        if all(p.grad is None for group in groups for p in group["params"]):
            return None
        pieces = []
        for group in groups:
            for p in group["params"]:
                g = torch.zeros_like(p) if p.grad is None else p.grad
                if g.is_sparse:
                    raise TypeError(f"gradients must be dense, got a sparse one of shape {tuple(g.shape)}")
                if group["maximize"]:
                    g = -g
                if group["weight_decay"] and p.grad is not None:
                    g = g + group["weight_decay"] * p
                if self.sparse:
                    g = g * self.state[p]["mask"]
                pieces.append(g.flatten())
        flat = torch.cat(pieces)
        if self.check_finite and not bool(flat.isfinite().all()):
            shapes = [tuple(p.shape) for group in groups for p in group["params"]]
            bad = [shape for shape, g in zip(shapes, pieces) if not bool(g.isfinite().all())]
            raise ValueError(f"gradients must be finite, got NaN or infinite values in those of shape {bad}")
        return flat

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state; its windows must hold ``ngrads`` gradients."""
        windows = {name: s for name, s in state_dict["state"].items() if isinstance(name, str)}
        for saved in windows.values():
            if len(saved["gram"]) != self.ngrads:
                raise ValueError(f"state_dict must hold windows of {self.ngrads} gradients, got {len(saved['gram'])}")
        super().load_state_dict(state_dict)
        for name, saved in windows.items():
            device = self.param_groups[0 if self.window == "global" else int(name.split()[1])]["params"][0].device
            self.state[name] = {
                "gradients": saved["gradients"].to(device, self.dtype, copy=True),
                "gram": saved["gram"].to(device, copy=True),
                "count": saved["count"],
            }
