"""Networks of threshold units over patches: convolutional, locally connected and fully connected, on equal terms.

A unit with a threshold, ``phi_b(z) = sign(z) max(|z| - b, 0)``, tells a strong response from noise::

    convolutional       f(x) = sum_j phi_b(<w, x_j>)        d weights
    locally connected   f(x) = sum_j phi_b(<w_j, x_j>)      k d weights
    fully connected     f(x) = sum_j phi_b(<w_j, x>)        k^2 d weights

for an image ``x`` of k patches ``x_j`` in R^d. Without the threshold all three are linear.

References
----------
A. Lahoti, S. Karp, E. Winston, A. Singh, Y. Li, "Role of Locality and Weight Sharing in Image-Based Tasks: A Sample
Complexity Separation between CNNs, LCNs, and FCNs", ICLR 2024, arXiv:2403.15707.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hadamard.validation import check_option, check_range, check_tensor

__all__ = ["PatchThresholdNet", "responses", "train_patches"]

KINDS = ("conv", "local", "full")


def responses(
    x: Float[Tensor, "*batch n k d"], weight: Float[Tensor, "*weights"], threshold: Float[Tensor, "*nets"], kind: str
) -> Float[Tensor, "*batch n"]:
    """``f(x)`` of one network, or of as many as ``threshold`` has entries, each on its own images."""
    if kind == "conv":
        z = torch.einsum("...nkd,...d->...nk", x, weight)
    elif kind == "local":
        z = torch.einsum("...nkd,...kd->...nk", x, weight)
    else:
        z = x.flatten(-2) @ weight.mT
    b = threshold.clamp(min=0)[..., None, None]
    return (z - torch.clamp(z, min=-b, max=b)).sum(-1)


class PatchThresholdNet(nn.Module):
    """One hidden layer of threshold units over patches: convolutional, locally connected or fully connected.

    Parameters
    ----------
    kind
        ``"conv"``, ``"local"`` or ``"full"``; one kernel for all patches, one for each, or units that see the
        whole image.
    n_patches, patch_dim
        Number k and size d of the patches.
    nets
        Train that many networks side by side, each on images of its own; ``None``: a single one.
    generator
        For the first weights, normal with variance 1 / fan-in; ``None``: torch's own.
    device, dtype
        Of the parameters.

    Attributes
    ----------
    weight
        Shape (d,), (k, d) or (k, k d), behind (nets,) if there are several.
    threshold
        The level b below which a unit is silent; starts at 0, where the network is linear, and counts as 0 below it.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range; by ``forward``, if the input has another width.

    References
    ----------
    A. Lahoti, S. Karp, E. Winston, A. Singh, Y. Li. Role of Locality and Weight Sharing in Image-Based Tasks. ICLR
    2024. arXiv:2403.15707. The unit, an odd soft threshold with a level that all units share, is a choice made here.

    Examples
    --------
    >>> {kind: PatchThresholdNet(kind, 8, 16).weight.numel() for kind in ("conv", "local", "full")}
    {'conv': 16, 'local': 128, 'full': 1024}
    >>> PatchThresholdNet("local", 8, 16)(torch.randn(5, 128)).shape
    torch.Size([5])
    """

    def __init__(
        self,
        kind: str,
        n_patches: int,
        patch_dim: int,
        *,
        nets: int | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.kind = check_option(kind, "kind", KINDS)
        k = self.n_patches = check_range(n_patches, "n_patches", 1, integer=True)
        d = self.patch_dim = check_range(patch_dim, "patch_dim", 1, integer=True)
        batch = () if nets is None else (check_range(nets, "nets", 1, integer=True),)
        shape = {"conv": (d,), "local": (k, d), "full": (k, k * d)}[kind]
        weight = torch.empty(*batch, *shape, device=device, dtype=dtype)
        self.weight = nn.Parameter(weight.normal_(std=shape[-1] ** -0.5, generator=generator))
        self.threshold = nn.Parameter(torch.zeros(batch, device=device, dtype=dtype))

    def forward(self, x: Float[Tensor, "*batch n width"]) -> Float[Tensor, "*batch n"]:
        """The score of each image, whose sign is the label; images as rows, (nets, n, k d) if there are several."""
        if x.shape[-1] != self.n_patches * self.patch_dim:
            raise ValueError(f"x must have {self.n_patches * self.patch_dim} columns, got shape {tuple(x.shape)}")
        return responses(x.unflatten(-1, (self.n_patches, self.patch_dim)), self.weight, self.threshold, self.kind)

    def extra_repr(self) -> str:
        """The options that differ between instances."""
        return f"{self.kind!r}, n_patches={self.n_patches}, patch_dim={self.patch_dim}"


def train_patches(
    net: PatchThresholdNet,
    x: Float[Tensor, "*batch n width"],
    y: Float[Tensor, "*batch n"],
    *,
    optimizer: str = "adam",
    learning_rate: float = 0.05,
    steps: int = 150,
    weight_decay: float = 1e-3,
    learn_threshold: bool = True,
) -> PatchThresholdNet:
    """Train in place on all images at once, by the logistic loss and ``weight_decay * |weights|^2``, and return it.

    Parameters
    ----------
    net
        One network or several.
    x, y
        Images as the network takes them, and labels -1 or 1.
    optimizer
        ``"gd"``: plain gradient descent, which a rotation of the images and of the first weights only rotates, as the
        paper's lower bounds ask for; ``"adam"``: fewer steps, and no such symmetry.
    learning_rate, steps, weight_decay
        Of the training.
    learn_threshold
        Whether the threshold is trained; it is kept at 0 or above.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range, or a value is not finite.

    Examples
    --------
    >>> generator = torch.Generator().manual_seed(0)
    >>> labels = 2.0 * torch.randint(2, (200,), generator=generator) - 1
    >>> x = 0.2 * torch.randn(200, 4, 8, generator=generator)
    >>> x[:, 1, 0] += labels
    >>> x = x.flatten(1)
    >>> net = train_patches(PatchThresholdNet("conv", 4, 8, generator=generator), x, labels)
    >>> bool((net(x).sign() == labels).float().mean() > 0.95)
    True
    """
    check_tensor(x, "x", dtype="floating")
    check_tensor(y, "y", dtype="floating")
    check_option(optimizer, "optimizer", ("adam", "gd"))
    check_range(learning_rate, "learning_rate", 0, closed="neither")
    check_range(steps, "steps", 1, integer=True)
    check_range(weight_decay, "weight_decay", 0)
    trained = [net.weight, net.threshold] if learn_threshold else [net.weight]
    make = torch.optim.Adam if optimizer == "adam" else torch.optim.SGD
    descent = make(trained, lr=learning_rate)
    for _ in range(steps):
        descent.zero_grad(set_to_none=True)
        losses = nn.functional.softplus(-y * net(x)).mean(-1)
        (losses.sum() + weight_decay * net.weight.square().sum()).backward()
        descent.step()
        with torch.no_grad():
            net.threshold.clamp_(min=0)
    return net
