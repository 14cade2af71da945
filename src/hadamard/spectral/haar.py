"""The two-dimensional Haar transform of one level, orthonormal, with the bands on an axis of their own."""

import torch
from jaxtyping import Float
from torch import Tensor

from hadamard.validation import check_tensor

__all__ = ["haar2d", "ihaar2d"]


def haar2d(x: Float[Tensor, "b *channels h w"]) -> Float[Tensor, "b 4 *channels h/2 w/2"]:
    """Split pictures into the four Haar bands of half their height and width.

    Parameters
    ----------
    x
        Of shape (B, ..., H, W), H and W even.

    Returns
    -------
    Tensor
        Of shape (B, 4, ..., H / 2, W / 2): of each square ``[[a, b], [c, d]]`` of pixels half of ``a + b + c + d``
        (LL), of ``a + b - c - d`` (LH), of ``a - b + c - d`` (HL) and of ``a - b - c + d`` (HH). These are PyWavelets'
        ``cA``, ``cH``, ``cV`` and ``cD``; LL is twice the mean of the square.

    Raises
    ------
    TypeError
        If ``x`` is not a floating tensor.
    ValueError
        If it has fewer than three dimensions, or an odd height or width.

    Notes
    -----
    The transform is orthonormal: it keeps the energy, and its inverse is its adjoint.

    Examples
    --------
    >>> haar2d(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])).flatten()
    tensor([ 5., -2., -1.,  0.])
    """
    _check(x, "x", 3)
    if x.shape[-2] % 2 or x.shape[-1] % 2:
        raise ValueError(f"x must have an even height and width, got {x.shape[-2]} by {x.shape[-1]}")
    top, bottom = x[..., ::2, :], x[..., 1::2, :]
    low, high = (top + bottom) / 2, (top - bottom) / 2
    parts = [half[..., side::2] for half in (low, high) for side in (0, 1)]
    return torch.stack([parts[0] + parts[1], parts[2] + parts[3], parts[0] - parts[1], parts[2] - parts[3]], 1)


def ihaar2d(bands: Float[Tensor, "b 4 *channels h w"]) -> Float[Tensor, "b *channels 2*h 2*w"]:
    """Put pictures together from their Haar bands: the inverse of :func:`haar2d`, and its adjoint.

    Parameters
    ----------
    bands
        Of shape (B, 4, ..., H, W), the bands in the order LL, LH, HL, HH.

    Returns
    -------
    Tensor
        Of shape (B, ..., 2 H, 2 W).

    Raises
    ------
    TypeError
        If ``bands`` is not a floating tensor.
    ValueError
        If it has fewer than four dimensions, or its second is not 4.

    Examples
    --------
    >>> ihaar2d(haar2d(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])))
    tensor([[[1., 2.],
             [3., 4.]]])
    """
    _check(bands, "bands", 4)
    if bands.shape[1] != 4:
        raise ValueError(f"bands must have the four bands on axis 1, got shape {tuple(bands.shape)}")
    ll, lh, hl, hh = bands.unbind(1)
    low = torch.stack([ll + hl, ll - hl], -1).flatten(-2)
    high = torch.stack([lh + hh, lh - hh], -1).flatten(-2)
    return torch.stack([low + high, low - high], -2).flatten(-3, -2) / 2


def _check(x: Tensor, name: str, least: int) -> None:
    check_tensor(x, name, dtype="floating", finite=False)
    if x.ndim < least:
        raise ValueError(f"{name} must have at least {least} dimensions, got shape {tuple(x.shape)}")
