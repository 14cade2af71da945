"""Panoramas as overlapping flat views, and back: gnomonic projections of an equirectangular picture.

A view looks at longitude ``lon0`` and latitude ``lat0``. The direction (lon, lat) lies in its plane at

    x = cos(lat) sin(lon - lon0) / cos(c),    y = (cos(lat0) sin(lat) - sin(lat0) cos(lat) cos(lon - lon0)) / cos(c),
    cos(c) = sin(lat0) sin(lat) + cos(lat0) cos(lat) cos(lon - lon0),

and is seen where cos(c) > 0 and |x|, |y| <= tan(fov / 2).
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from hadamard.operators import LinearOperator
from hadamard.operators.gradient import with_adjoint
from hadamard.validation import check_option, check_range, check_tensor

__all__ = ["TangentSphere", "around", "check_panorama", "directions", "enlarge", "from_plane", "to_plane"]

_MARGIN = 4  # pixels around the panorama, as many as bicubic interpolation reaches with one to spare
_SPREAD = 0.1  # standard deviation of the Gaussian weights, in sides of a view


class TangentSphere(LinearOperator):
    """Flat views that cover the sphere, taken from a panorama and merged into one again.

    A linear operator: ``A`` takes the views, ``A_adjoint`` is its adjoint, and :meth:`merge` goes back.

    Parameters
    ----------
    size
        (H, W) of the panorama, W = 2 H: row 0 is the north pole, column 0 begins at -180 degrees, centres of pixels at
        halves.
    patch
        Side of a view in pixels; ``None``: H / 2.
    layout
        Views in each row, from north to south. Rows are spaced evenly in latitude, views evenly in longitude.
    fov
        Field of view in degrees, between the centres of the outermost pixels. The paper says 75, but its code takes
        half of that angle, in radians, as the half extent of the plane: a field of view of 2 atan(75 pi / 360) = 66.41.
    pre_upscale
        How many times panorama and views are enlarged (Keys' cubic kernel) before they are sampled. More lose less and
        cost more; the paper takes 4.
    dtype, device
        Of the coordinates that are kept.

    Raises
    ------
    ValueError
        If W is not 2 H, or the views leave holes; the message says how large they are.

    Notes
    -----
    Longitude is periodic and beyond a pole lies the other side of the sphere; the authors' code repeats the border
    pixels instead, which leaves a seam at +-180 degrees.

    References
    ----------
    R. Li, X. Sheng, W. Li, J. Zhang. OmniSSR: Zero-shot Omnidirectional Image Super-Resolution using Stable Diffusion
    Model. ECCV 2024, arXiv:2404.10312.

    Examples
    --------
    >>> sphere = TangentSphere((32, 64))
    >>> views = sphere(torch.ones(3, 32, 64))
    >>> views.shape, sphere.merge(views).shape
    (torch.Size([3, 18, 16, 16]), torch.Size([3, 32, 64]))
    """

    centres: Tensor
    _grid: Tensor
    _places: Tensor
    _weights: Tensor
    _where: Tensor

    def __init__(
        self,
        size: Sequence[int],
        patch: int | None = None,
        layout: Sequence[int] = (3, 6, 6, 3),
        fov: float = 66.41,
        pre_upscale: int = 2,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        check_range(fov, "fov", 0, 180, closed="neither")
        check_range(pre_upscale, "pre_upscale", 1, integer=True)
        height, width = _size(size)
        side = check_range(height // 2 if patch is None else patch, "patch", 2, integer=True)
        if not layout:
            raise ValueError("layout must name at least one row of views, got none")
        for count in layout:
            check_range(count, "layout", 1, integer=True)
        super().__init__((height, width), (sum(layout), side, side))
        self.fov, self.pre_upscale, self.extent = fov, pre_upscale, math.tan(math.radians(fov) / 2)
        centres = [
            (360 * (j + 0.5) / count - 180, 90 - 180 * (i + 0.5) / len(layout))
            for i, count in enumerate(layout)
            for j in range(count)
        ]
        self.register_buffer("centres", torch.tensor(centres, dtype=torch.float64).deg2rad())
        views = self._looking().reshape(1, -1, side, 2)
        where, places = self._seeing()
        self._counts = [len(w) for w in where]
        weights = torch.cat([(-(p / (2 * _SPREAD)).square().sum(-1) / 2).exp() for p in places])
        holes = float((torch.bincount(torch.cat(where), minlength=height * width) == 0).double().mean())
        if holes:
            raise ValueError(
                f"the views must cover the sphere, but layout={tuple(layout)} and fov={fov:g} leave out "
                f"{100 * holes:.2g} % of the panorama's pixels"
            )
        for name, value in (("_grid", views), ("_places", torch.cat(places)), ("_weights", weights)):
            self.register_buffer(name, value.to(dtype=dtype, device=device), persistent=False)
        self.register_buffer("_where", torch.cat(where).to(device), persistent=False)
        self.centres = self.centres.to(dtype=dtype, device=device)

    def A(self, x: Float[Tensor, "*batch h w"]) -> Float[Tensor, "*batch n p p"]:
        """Take the views of panoramas (..., H, W): (..., N, P, P)."""
        return with_adjoint(self.check_in(x), self._project, self._pull)

    def A_adjoint(self, y: Float[Tensor, "*batch n p p"]) -> Float[Tensor, "*batch h w"]:
        """Apply the adjoint of taking the views; to make a panorama of views, :meth:`merge` them."""
        return with_adjoint(self.check_out(y), self._pull, self._project)

    def merge(self, views: Float[Tensor, "*batch n p p"], weights: str = "gaussian") -> Float[Tensor, "*batch h w"]:
        """Make panoramas (..., H, W) of views (..., N, P, P): a weighted mean of the views that see a pixel.

        Parameters
        ----------
        views
            As :meth:`A` gives them.
        weights
            ``"gaussian"``: each view's middle counts most, with a standard deviation of a tenth of its side (the
            paper's); ``"uniform"``: all alike.
        """
        gaussian = check_option(weights, "weights", ("gaussian", "uniform")) == "gaussian"
        seen = self._seen(self.check_out(views, "views"))
        w = self._weights.to(seen.dtype) if gaussian else torch.ones_like(self._weights, dtype=seen.dtype)
        total = self._gather(w)
        return (self._gather(seen * w) / total).reshape(*views.shape[:-3], *self.in_shape)

    def disagreement(self, views: Float[Tensor, "*batch n p p"]) -> Float[Tensor, "*batch"]:
        """How much views contradict each other: root mean square of the deviation from the mean of those that see a
        pixel, over the pixels that several see.
        """
        seen = self._seen(self.check_out(views, "views"))
        count = self._gather(seen.new_ones(len(self._where)))
        deviation = seen - (self._gather(seen) / count)[..., self._where]
        several = count[self._where] > 1
        if not bool(several.any()):
            raise ValueError(f"fov must be so large that views overlap, got {self.fov:g}")
        return deviation[..., several].square().mean(-1).sqrt().reshape(views.shape[:-3])

    def _project(self, x: Tensor) -> Tensor:
        planes = around(x.reshape(1, -1, *self.in_shape), _MARGIN)
        fine = self._enlarge(planes)
        views = F.grid_sample(fine, self._grid.to(x.dtype), "bicubic", "border", align_corners=False)
        return views.reshape(*x.shape[:-2], *self.out_shape)

    def _pull(self, y: Tensor) -> Tensor:
        """The adjoint of :meth:`_project`, by its gradient."""
        zero = y.new_zeros(*y.shape[:-3], *self.in_shape).requires_grad_()
        with torch.enable_grad():
            return torch.autograd.grad(self._project(zero), zero, y)[0]

    def _seen(self, views: Tensor) -> Tensor:
        """What each view shows at each pixel that it sees: (planes, M)."""
        planes = views.reshape(-1, *self.out_shape).transpose(0, 1)
        grids = self._places.to(views.dtype).split(self._counts)
        found = [
            F.grid_sample(self._enlarge(view[None]), grid[None, None], "bilinear", "border", align_corners=False)
            for view, grid in zip(planes, grids)
        ]
        return torch.cat([f[0, :, 0] for f in found], -1)

    def _gather(self, values: Tensor) -> Tensor:
        """Sum over the views: (..., M) to (..., H * W)."""
        total = values.new_zeros(*values.shape[:-1], math.prod(self.in_shape))
        return total.index_add(-1, self._where, values)

    def _enlarge(self, x: Tensor) -> Tensor:
        if self.pre_upscale == 1:
            return x
        size = [self.pre_upscale * n for n in x.shape[-2:]]
        return F.interpolate(x, size, mode="bicubic", antialias=True)  # which makes torch's kernel Keys'

    def _looking(self) -> Tensor:
        """Where in the enlarged panorama the views' pixels lie, in grid_sample's units."""
        height, width = self.in_shape
        side = self.out_shape[-1]
        line = torch.linspace(-self.extent, self.extent, side, dtype=torch.float64)
        x, y = line.expand(side, side), -line[:, None].expand(side, side)
        lon, lat = from_plane(x, y, self.centres[:, None, None])
        column = ((lon / (2 * math.pi) + 0.5) % 1) * width + _MARGIN
        row = (0.5 - lat / math.pi) * height + _MARGIN
        return torch.stack([column * 2 / (width + 2 * _MARGIN) - 1, row * 2 / (height + 2 * _MARGIN) - 1], -1)

    def _seeing(self) -> tuple[list[Tensor], list[Tensor]]:
        """For each view the pixels of the panorama that it sees, and where in it they lie, in grid_sample's units."""
        lon, lat = directions(self.in_shape)
        side = self.out_shape[-1]
        where, places = [], []
        for centre in self.centres:
            x, y, front = to_plane(lon, lat, centre)
            inside = front & (x.abs() <= self.extent) & (y.abs() <= self.extent)
            where.append(inside.flatten().nonzero()[:, 0])
            places.append(torch.stack([x[inside], -y[inside]], -1) * ((side - 1) / (side * self.extent)))
        return where, places


def directions(size: Sequence[int]) -> tuple[Float[Tensor, "h w"], Float[Tensor, "h w"]]:
    """Longitude and latitude in radians of the pixels of a panorama (H, W), in double precision."""
    height, width = size
    lon = ((torch.arange(width, dtype=torch.float64) + 0.5) / width - 0.5) * 2 * math.pi
    lat = (0.5 - (torch.arange(height, dtype=torch.float64) + 0.5) / height) * math.pi
    return lon.expand(height, width), lat[:, None].expand(height, width)


def to_plane(
    lon: Float[Tensor, "*n"], lat: Float[Tensor, "*n"], centre: Float[Tensor, "*b 2"]
) -> tuple[Tensor, Tensor, Tensor]:
    """Project directions onto the plane that touches the sphere at ``centre`` = (lon0, lat0), all in radians.

    Returns
    -------
    tuple
        x (east), y (north), and whether the direction lies on this side of the sphere: elsewhere x and y mean nothing.
    """
    lon0, lat0 = centre.unbind(-1)
    cosine = lat0.sin() * lat.sin() + lat0.cos() * lat.cos() * (lon - lon0).cos()
    front = cosine > 1e-9
    below = cosine.where(front, torch.ones_like(cosine))
    x = lat.cos() * (lon - lon0).sin() / below
    y = (lat0.cos() * lat.sin() - lat0.sin() * lat.cos() * (lon - lon0).cos()) / below
    return x, y, front


def from_plane(x: Float[Tensor, "*n"], y: Float[Tensor, "*n"], centre: Float[Tensor, "*b 2"]) -> tuple[Tensor, Tensor]:
    """Find the longitude and latitude of points of a plane, in radians; undoes :func:`to_plane`.

    With c = atan(rho): sin(c) / rho = cos(c) = 1 / sqrt(1 + rho^2), so that the centre needs no care.
    """
    lon0, lat0 = centre.unbind(-1)
    cosine = 1 / (1 + x.square() + y.square()).sqrt()
    lat = (cosine * (lat0.sin() + y * lat0.cos())).clamp(-1, 1).asin()
    return lon0 + torch.atan2(x, lat0.cos() - y * lat0.sin()), lat


def around(x: Float[Tensor, "*b h w"], margin: int) -> Tensor:
    """Continue a panorama on all sides, over the poles and around the sphere."""
    half = x.shape[-1] // 2
    north, south = (rows.flip(-2).roll(half, -1) for rows in (x[..., :margin, :], x[..., -margin:, :]))
    x = torch.cat([north, x, south], -2)
    return torch.cat([x[..., -margin:], x, x[..., :margin]], -1)


def enlarge(x: Float[Tensor, "*b h w"], factor: int) -> Tensor:
    """Enlarge a panorama by Keys' cubic kernel, over the poles and around the sphere."""
    padded = around(x, _MARGIN).reshape(1, -1, x.shape[-2] + 2 * _MARGIN, x.shape[-1] + 2 * _MARGIN)
    size = [factor * n for n in padded.shape[-2:]]
    fine = F.interpolate(padded, size, mode="bicubic", antialias=True)  # which makes torch's kernel Keys'
    cut = factor * _MARGIN
    return fine[..., cut:-cut, cut:-cut].reshape(*x.shape[:-2], factor * x.shape[-2], factor * x.shape[-1])


def _size(size: Sequence[int]) -> tuple[int, int]:
    if len(size) != 2 or size[1] != 2 * size[0] or size[0] < 2 * _MARGIN:
        raise ValueError(
            f"size must be (H, 2 H) with H >= {2 * _MARGIN}, an equirectangular panorama of the whole sphere, "
            f"got {tuple(size)}"
        )
    return int(size[0]), int(size[1])


def check_panorama(x: Tensor, name: str) -> Tensor:
    """Check that a tensor is (..., H, 2 H), finite and floating."""
    check_tensor(x, name, dtype="floating")
    _size(x.shape[-2:])
    return x
