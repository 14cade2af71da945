"""What to ask of samples: are they copies of the training pictures, and do they lie between classes?"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from hadamard.transport.power_diagram import assign
from hadamard.validation import check_range, check_tensor

__all__ = ["MemorisationReport", "memorisation_report", "mode_mixture_ratio"]


@dataclass(frozen=True)
class MemorisationReport:
    """How near samples are to the training pictures, beside pictures that were held out; print it.

    Attributes
    ----------
    generated, held_out
        Median distances to the nearest training picture.
    duplicates
        Share of the samples that are nearer to a training picture than the nearest 1 % of those held out.
    """

    generated: float
    held_out: float
    duplicates: float

    @property
    def ratio(self) -> float:
        """The two distances' ratio: 1 for new pictures of the same law; well below 1, samples are copies."""
        return self.generated / self.held_out

    def __str__(self) -> str:
        return (
            f"distance to the nearest training picture: {self.generated:.4g} (median of samples), "
            f"{self.held_out:.4g} (held out), ratio {self.ratio:.2f}; {self.duplicates:.0%} of the samples are nearer "
            "than the nearest 1 % of those held out"
        )


def memorisation_report(
    generated: Float[Tensor, "n *shape"], train: Float[Tensor, "m *shape"], held_out: Float[Tensor, "k *shape"]
) -> MemorisationReport:
    """Compare the distances of samples and of held-out pictures to their nearest training pictures.

    Parameters
    ----------
    generated, train, held_out
        Pictures, or features of them, in one scale; the first dimension counts them. ``train`` holds all that the
        network or the stored latents have seen; fewer make the report too kind.

    Raises
    ------
    TypeError, ValueError
        If one is no floating tensor, holds NaN or infinity, or the shapes differ.

    Examples
    --------
    >>> import torch
    >>> train, held_out = torch.randn(2, 500, 8, generator=torch.Generator().manual_seed(0))
    >>> memorisation_report(train[:50] + 0.01, train, held_out).duplicates
    1.0
    """
    for name, x in (("generated", generated), ("train", train), ("held_out", held_out)):
        check_tensor(x, name, dtype="floating", shape=tuple(train.shape[1:]))
    ours, theirs = _nearest(generated, train), _nearest(held_out, train)
    near = theirs.quantile(0.01)
    return MemorisationReport(float(ours.median()), float(theirs.median()), float((ours < near).double().mean()))


def mode_mixture_ratio(probabilities: Float[Tensor, "n classes"], threshold: float = 0.25) -> float:
    """Find the share of samples that a classifier sees in two classes at once.

    Parameters
    ----------
    probabilities
        Of the classes, by a classifier, for each sample; rows sum to 1.
    threshold
        Two classes must have at least this, above 0 and at most 0.5.

    Raises
    ------
    TypeError, ValueError
        If the probabilities are no floating tensor of two or more columns, or do not sum to 1, or the threshold lies
        outside its range.

    Examples
    --------
    >>> import torch
    >>> mode_mixture_ratio(torch.tensor([[0.9, 0.1, 0.0], [0.5, 0.4, 0.1]]))
    0.5
    """
    check_tensor(probabilities, "probabilities", ndim=2, dtype="floating")
    check_range(probabilities, "probabilities", 0, elementwise=True)
    check_range(threshold, "threshold", 0, 0.5, closed="right")
    if probabilities.shape[1] < 2 or bool(((probabilities.sum(1) - 1).abs() > 1e-3).any()):
        raise ValueError("probabilities must have two or more columns, and rows that sum to 1")
    return float((probabilities.topk(2, dim=1)[0][:, 1] >= threshold).double().mean())


def _nearest(x: Tensor, train: Tensor) -> Tensor:
    """Distances to the nearest training picture, in double precision."""
    points, sites = x.flatten(1).double(), train.flatten(1).double()
    where = assign(points, sites, -sites.square().sum(1) / 2)[1]
    return (points - sites[where]).norm(dim=1)
