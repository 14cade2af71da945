"""What an optimal linear denoiser does to each frequency at each level of noise.

A noisy picture is ``x_t = sqrt(a) x0 + sqrt(1 - a) noise``, with ``a`` the scheduler's ``alphas_cumprod[t]``. If the
pictures' law does not change under shifts and their mean is zero, the linear filter that comes nearest to ``x0`` has
the gain ``sqrt(a) P / (a P + 1 - a)`` at a frequency with power ``P``.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from hadamard.validation import check_range, check_tensor

__all__ = ["wiener_gain"]


def wiener_gain(
    alpha_bar: Float[Tensor, "*t"] | float, power: Float[Tensor, "*frequencies"]
) -> Float[Tensor, "*t_frequencies"]:
    """The gain of the best linear denoiser, by level of noise and frequency.

    Where the power falls like ``f^-2``, as in natural pictures, the frequency up to which more than half of the signal
    is kept rises like the square root of ``alpha_bar / (1 - alpha_bar)``: one network has to be a narrow low-pass at
    the first steps of sampling and nearly the identity at the last.

    Parameters
    ----------
    alpha_bar
        ``alphas_cumprod`` of a scheduler at one timestep or at several, in [0, 1].
    power
        Expected ``|x0^(f)|^2`` per frequency, in units in which the noise has 1 (a transform with ``norm="ortho"``); on
        any grid of frequencies, not negative. At a mean that is not zero it does not apply.

    Returns
    -------
    Tensor
        Of shape (\\*t, \\*frequencies).

    Raises
    ------
    ValueError
        If an argument lies outside its range or is not finite.

    References
    ----------
    X. Yang, D. Zhou, J. Feng, X. Wang. Diffusion Probabilistic Model Made Slim. CVPR 2023, arXiv:2211.17106.

    Examples
    --------
    >>> f = torch.tensor([1.0, 2.0, 4.0])
    >>> wiener_gain(0.5, f**-2) * 0.5**0.5             # how much of the signal comes through
    tensor([0.5000, 0.2000, 0.0588])
    """
    check_tensor(power, "power", dtype="floating")
    check_range(power, "power", 0, elementwise=True)
    check_range(alpha_bar, "alpha_bar", 0, 1, elementwise=True)
    a = torch.as_tensor(alpha_bar, dtype=power.dtype, device=power.device)
    a = a.reshape(*a.shape, *[1] * power.ndim)
    total = a * power + 1 - a
    return torch.where(total > 0, a.sqrt() * power / torch.where(total > 0, total, 1), 0)
