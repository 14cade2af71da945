"""Lion-K: momentum, turned into a step by a convex function, which together with weight decay fixes a constraint.

With an average gradient ``u`` (of two different lengths for step and memory), a convex function K and decoupled weight
decay, the update ``x <- x + lr * (grad K(-u) - weight_decay * x)`` solves ``min f(x) + K*(weight_decay * x) /
weight_decay``, K* being the conjugate of K. With the 1-norm for K this is Lion, and the problem is ``min f`` under
``max |x| <= 1 / weight_decay``: the bound depends on the weight decay alone, not on the learning rate. Other K give
other constraints and penalties for the same price of one buffer a parameter.

References
----------
L. Chen, B. Liu, K. Liang, Q. Liu, "Lion Secretly Solves Constrained Optimization: As Lyapunov Predicts", ICLR 2024,
arXiv:2310.05898. Lion itself: X. Chen et al., "Symbolic Discovery of Optimization Algorithms", NeurIPS 2023,
arXiv:2302.06675. The paper writes minus the average gradient as m; here, as in the usual codes for Lion, ``exp_avg``
is the average gradient.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from hadamard.optim.lion_kernels import LqBall, NewtonSchulzBall
from hadamard.proximal import ConvexFunction, L2Ball, LInfBall, SpectralBall, SquaredL2
from hadamard.validation import check_option, check_range

__all__ = ["LionK"]

Kernel = ConvexFunction | Callable[[Tensor], Tensor]

_KERNELS: dict[str, ConvexFunction] = {
    "l1": LInfBall(),
    "l2": LqBall(2.0),
    "group": L2Ball(dim=-1),
    "nuclear": SpectralBall(),
    "newton_schulz": NewtonSchulzBall(),
    "squared": SquaredL2(),
}


class LionK(Optimizer):
    """Lion, and its relatives with other constraints; in place of ``torch.optim.AdamW`` or Lion.

    Parameters
    ----------
    params
        Parameters, or groups of them; every option but the last four may differ between groups.
    lr
        Learning rate, above 0. For Lion three to ten times smaller than for AdamW.
    betas
        Weights of the old average in the step and in the memory, each in [0, 1).
    weight_decay
        Decoupled weight decay, at least 0; three to ten times larger than for AdamW, so that its product with ``lr``
        is kept. It sets the constraint; at 0 there is none, and steps of constant size need not come to rest.
    kernel
        Which K: ``"l1"`` (Lion: ``|x| <= 1/weight_decay`` for every weight), ``"l2"`` (2-norm of each tensor),
        ``"group"`` (2-norm of each row), ``"nuclear"`` (largest singular value of each matrix, by SVD) or
        ``"newton_schulz"`` (the same by matrix products: Muon with weight decay), ``"squared"`` (ridge: momentum SGD).
        Or the constraint itself: a convex function K* of :mod:`hadamard.optim.lion_kernels` or
        :mod:`hadamard.proximal` with ``grad_conjugate``. Or the gradient of K, any function of a tensor.
    decay
        ``"explicit"``: ``x (1 - lr * weight_decay)`` before the step, as in AdamW. ``"implicit"``: ``x / (1 + lr *
        weight_decay)`` after it, for which ``lr * weight_decay`` may exceed 1.
    maximize
        Ascend instead of descend.
    foreach
        Work on lists of tensors at once; by default where all parameters of a group are on an accelerator.
    check_finite
        Refuse NaN and infinite gradients, whose sign is 0 or 1 and which would stay unnoticed in the average. It costs
        a pass over the gradients, and on an accelerator one wait a step.
    capturable, differentiable, fused
        Only their defaults: named so that they are refused in words.

    Raises
    ------
    TypeError
        If a parameter is complex, a gradient is sparse, or ``kernel`` cannot give a direction.
    ValueError
        If an option is out of range, ``lr * weight_decay`` exceeds 1 with explicit decay (the constraint would not
        hold), a kernel for matrices meets another shape, or a gradient is not finite.

    Notes
    -----
    From outside the constraint, the distance to it shrinks by ``1 - lr * weight_decay`` a step (explicit decay) or
    ``1 / (1 + lr * weight_decay)`` (implicit), whatever the gradients; once inside, the weights stay inside.

    ``state_dict`` has the entries of lion-pytorch's and names the kernel; loading refuses a state of another kernel.

    Examples
    --------
    >>> x = torch.zeros(3, requires_grad=True)
    >>> optimizer = LionK([x], lr=0.01, weight_decay=1.0)
    >>> for _ in range(1000):
    ...     optimizer.zero_grad()
    ...     ((x - torch.tensor([0.5, 2.0, -3.0])) ** 2).sum().backward()
    ...     _ = optimizer.step()
    >>> x.detach().round(decimals=1)
    tensor([ 0.5000,  1.0000, -1.0000])
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        kernel: str | Kernel = "l1",
        decay: str = "explicit",
        maximize: bool = False,
        foreach: bool | None = None,
        check_finite: bool = True,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        for name, value in {"capturable": capturable, "differentiable": differentiable, "fused": fused}.items():
            if value:
                raise ValueError(f"{name} is not supported by LionK, got {value!r}")
        self.check_finite = check_finite
        defaults = {
            "lr": lr,
            "betas": betas,
            "weight_decay": weight_decay,
            "kernel": kernel,
            "decay": decay,
            "maximize": maximize,
            "foreach": foreach,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with options of their own, as in ``torch.optim.Optimizer``."""
        super().add_param_group(param_group)
        try:
            _check_group(self.param_groups[-1])
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step.

        Parameters
        ----------
        closure
            Evaluates the model again and returns the loss.

        Returns
        -------
        loss
            What ``closure`` returned, or ``None``.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        work = [(group, [p for p in group["params"] if p.grad is not None]) for group in self.param_groups]
        for number, (group, params) in enumerate(work):
            _check_rate(group)
            self._check_gradients(params, number)
        for group, params in work:
            for p in params:
                if not self.state[p]:
                    self.state[p]["exp_avg"] = torch.zeros_like(p, memory_format=torch.preserve_format)
            foreach = group["foreach"]
            if foreach is None:
                foreach = all(p.device.type != "cpu" for p in params)
            for batch in [params] if foreach and params else [[p] for p in params]:
                _update(batch, [p.grad for p in batch], [self.state[p]["exp_avg"] for p in batch], group)
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Return the state, with the kernels by name, so that it loads with ``weights_only=True``."""
        state = super().state_dict()
        for group in state["param_groups"]:
            group["kernel"] = kernel_name(group["kernel"])
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state of this class or of lion-pytorch; each group keeps its kernel, which must be the one named."""
        groups = []
        for saved, mine in zip(state_dict["param_groups"], self.param_groups):
            if saved.get("kernel", kernel_name(mine["kernel"])) != kernel_name(mine["kernel"]):
                raise ValueError(f"state_dict must have kernel {kernel_name(mine['kernel'])}, got {saved['kernel']}")
            groups.append({**mine, **saved, "kernel": mine["kernel"]})
        groups += state_dict["param_groups"][len(groups) :]
        super().load_state_dict({**state_dict, "param_groups": groups})

    def _check_gradients(self, params: list[Tensor], number: int) -> None:
        grads = [p.grad for p in params if p.grad is not None]
        for g in grads:
            if g.is_sparse:
                raise TypeError(f"gradients must be dense, got a sparse one of shape {tuple(g.shape)}")
        if not self.check_finite or not grads:
            return
        sums = torch.stack([g.sum(dtype=torch.float32).to(grads[0].device) for g in grads])
        if bool(sums.isfinite().all()):  # a finite sum has finite terms
            return
        for i, g in enumerate(grads):
            if not bool(g.isfinite().all()):
                raise ValueError(
                    f"gradients must be finite, got NaN or infinite values in gradient {i} of group {number}, "
                    f"of shape {tuple(g.shape)}"
                )


def _update(params: list[Tensor], grads: list[Any], averages: list[Tensor], group: dict[str, Any]) -> None:
    """One step of the parameters of one group."""
    lr, weight_decay, (beta1, beta2) = float(group["lr"]), group["weight_decay"], group["betas"]
    sign, kernel = (-1.0 if group["maximize"] else 1.0), group["kernel"]
    direction = list(torch._foreach_mul(averages, -beta1))
    torch._foreach_add_(direction, grads, alpha=-sign * (1 - beta1))
    if type(kernel) is LInfBall:
        torch._foreach_sign_(direction)
        lr_step = lr * kernel.radius
    else:
        direction = [_direction(kernel, m) for m in direction]
        lr_step = lr
    if group["decay"] == "explicit":
        torch._foreach_mul_(params, 1 - lr * weight_decay)
        torch._foreach_add_(params, direction, alpha=lr_step)
    else:
        torch._foreach_add_(params, direction, alpha=lr_step)
        torch._foreach_div_(params, 1 + lr * weight_decay)
    torch._foreach_mul_(averages, beta2)
    torch._foreach_add_(averages, grads, alpha=sign * (1 - beta2))


def _direction(kernel: Any, m: Tensor) -> Tensor:
    return kernel.grad_conjugate(m) if hasattr(kernel, "grad_conjugate") else kernel(m)


def _check_group(group: dict[str, Any]) -> None:
    """Check a group's options, and put the convex function in the place of its name."""
    check_range(group["lr"], "lr", 0, None, closed="neither")
    check_range(group["weight_decay"], "weight_decay", 0)
    if not isinstance(group["betas"], (tuple, list)) or len(group["betas"]) != 2:
        raise ValueError(f"betas must be two numbers, got {group['betas']!r}")
    for i, beta in enumerate(group["betas"]):
        check_range(beta, f"betas[{i}]", 0, 1, closed="left")
    check_option(group["decay"], "decay", ("explicit", "implicit"))
    _check_rate(group)
    kernel = group["kernel"]
    if isinstance(kernel, str):
        kernel = group["kernel"] = _KERNELS[check_option(kernel, "kernel", tuple(_KERNELS))]
    if not hasattr(kernel, "grad_conjugate") and (isinstance(kernel, (type, ConvexFunction)) or not callable(kernel)):
        raise TypeError(f"kernel must be a name, a convex function with grad_conjugate, or a function, got {kernel!r}")
    for p in group["params"]:
        if p.is_complex():
            raise TypeError(f"parameters must be real, got {p.dtype}")
        if isinstance(kernel, SpectralBall) and p.ndim != 2:
            raise ValueError(f"kernel {kernel_name(kernel)} needs matrices, got a parameter of shape {tuple(p.shape)}")


def _check_rate(group: dict[str, Any]) -> None:
    product = float(group["lr"]) * group["weight_decay"]
    if group["decay"] == "explicit" and product > 1:
        raise ValueError(
            f"lr * weight_decay must be <= 1 with explicit decay (else the constraint does not hold), got {product:.6g}"
        )


def kernel_name(kernel: Kernel) -> str:
    """Name a kernel in messages and state dicts."""
    return repr(kernel) if hasattr(kernel, "grad_conjugate") else getattr(kernel, "__name__", type(kernel).__name__)
