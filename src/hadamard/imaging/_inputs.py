"""What RDLEDM is given, checked: measurements, weights, somebody's physics."""

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hadamard.operators import LinearOperator, from_deepinv
from hadamard.validation import check_option, check_range, check_tensor

Weights = Mapping[str, float] | None


class Physics(LinearOperator):
    """Somebody's physics, on whole batches of complex series."""

    def __init__(self, physics: Any, y: Tensor) -> None:
        if not (hasattr(physics, "A") and hasattr(physics, "A_adjoint")):
            raise TypeError(f"physics must have A and A_adjoint, got {type(physics).__name__}")
        image = check_tensor(physics.A_adjoint(y), "physics.A_adjoint(y)", ndim=5)
        two = not y.is_complex()
        if image.is_complex() == two or image.shape[1] != 1 + two:
            raise ValueError(
                "physics.A_adjoint(y) must be complex of shape (B, 1, T, H, W), or real of shape (B, 2, T, H, W) like "
                f"y, got {image.dtype} of shape {tuple(image.shape)} from y of dtype {y.dtype}"
            )
        batch, _, *series = image.shape
        super().__init__((batch, 1, *series), (batch, *y.shape[1 + two :]))
        self.two = two
        like = image.new_empty(0, dtype=torch.promote_types(image.dtype, torch.complex64))
        self.register_buffer("like", like, persistent=False)
        inner = from_deepinv(physics, tuple(image.shape[1:]), complex_channels=True) if two else physics
        self.physics = inner

    def A(self, x: Tensor) -> Tensor:
        return self.physics.A(x[:, 0] if self.two else x)

    def A_adjoint(self, y: Tensor) -> Tensor:
        image = self.physics.A_adjoint(y)
        return image[:, None] if self.two else image


def measurements(y: Tensor, mask: Tensor, sens: Tensor | None) -> tuple[Tensor, Tensor]:
    """k-space as (B, C, T, H, W) and the mask as real numbers that broadcast against it, checked."""
    check_tensor(y, "y", ndim=(3, 4, 5), dtype="complex")
    kspace = y.reshape((1,) * (5 - y.ndim) + tuple(y.shape))
    batch, coils, frames, height, width = kspace.shape
    check_tensor(mask, "mask", ndim=(2, 3, 5), dtype=None)
    wanted = {2: (height, width), 3: (frames, height, width), 5: (batch, 1, frames, height, width)}[mask.ndim]
    if tuple(mask.shape) != wanted:
        raise ValueError(f"mask must have shape {wanted} to fit y of shape {tuple(y.shape)}, got {tuple(mask.shape)}")
    if not ((mask == 0) | (mask == 1)).all():
        raise ValueError("mask must hold zeros and ones only")
    if sens is not None:
        check_tensor(sens, "sens", ndim=(3, 4), shape=(coils, height, width), dtype=y.dtype)
    elif coils > 1:
        raise ValueError(f"sens must be given for {coils} coils (y of shape {tuple(y.shape)})")
    empty = int((~(mask != 0).flatten(-2).any(-1)).sum())
    if empty:
        warnings.warn(f"{empty} frame(s) have no samples and are made up from the others", stacklevel=3)
    return kspace, mask.to(y.real.dtype)


def check_weights(given: Weights, name: str, known: tuple[str, ...]) -> dict[str, float]:
    """The positive weights among those given."""
    for key, weight in (given or {}).items():
        check_option(key, f"a key of {name}", known)
        check_range(weight, f"{name}[{key!r}]", 0)
    return {key: float(weight) for key, weight in (given or {}).items() if weight > 0}
