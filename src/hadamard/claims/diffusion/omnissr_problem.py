"""What the claim of omnissr runs: panoramas enlarged in six ways, the way there and back, and the pseudo-inverse."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from hadamard.claims import torchvision_shim
from hadamard.claims.diffusion.omnissr_training import BOUNDARY, scheduler, trained
from hadamard.data import panoramas
from hadamard.diffusion.panorama_quality import ws_psnr, ws_ssim
from hadamard.diffusion.tangent_sphere import TangentSphere, enlarge
from hadamard.operators import bicubic

torchvision_shim.install()
from hadamard.diffusion.omnissr import OmniSSRPipeline, null_space_project  # noqa: E402

__all__ = [
    "BICUBIC", "DDNM", "NO_GD", "NO_OTII", "OURS", "PINV", "PLANAR", "Enlarging", "Inverse", "RoundTrip", "bandlimited",
    "test_panoramas",
]  # fmt: skip

OURS, NO_OTII, NO_GD = "hadamard", "views without interaction", "without gradient decomposition"
PLANAR, DDNM = "planar model on the panorama", "the same with DDNM"
BICUBIC, PINV = "bicubic", "pseudo-inverse"
_OPTIONS: dict[str, dict[str, Any]] = {
    OURS: {},
    NO_OTII: {"gamma_l": 0.0},
    NO_GD: {"gamma_e": 0.0, "gamma_p": 0.0},
    PLANAR: {"gamma_l": 0.0, "gamma_p": 0.0},
    DDNM: {"gamma_l": 1.0},
}


class _Whole(torch.nn.Module):
    """The panorama as its only view, as if it were flat."""

    def forward(self, x: Tensor) -> Tensor:
        return x.unsqueeze(-3)

    def merge(self, views: Tensor) -> Tensor:
        return views.squeeze(-3)


class _Planar(OmniSSRPipeline):
    """The same engine on the whole panorama."""

    def sphere(self, *_: Any) -> Any:
        return _Whole()


@dataclass
class Enlarged:
    """One way's result, in [0, 1], and what is measured on it."""

    images: Tensor
    psnr: float
    ssim: float
    poles: float
    seam: float
    residual: float
    disagreement: float | None = None


class Enlarging:
    """Panoramas (B, 3, H, W) in [-1, 1] that were reduced by a factor."""

    def __init__(self, truth: Tensor, scale: int, steps: int) -> None:
        self.truth, self.scale, self.steps = truth, scale, steps
        self.operator = bicubic(scale, truth.shape[-2:], boundary=BOUNDARY, dtype=torch.float64)
        self.small = self.operator(truth.double()).float()
        self.network = trained()

    def __call__(self, kind: str) -> Enlarged:
        """Enlarge them in one of the ways."""
        if kind == BICUBIC:
            return self.judged(enlarge(self.small, self.scale))
        if kind == PINV:
            return self.judged(self.operator.A_dagger(self.small.double()).float())
        pipe = (_Planar if kind in (PLANAR, DDNM) else OmniSSRPipeline)(self.network, scheduler())
        pipe.set_progress_bar_config(disable=True)
        found = pipe(
            self.small.clamp(-1, 1), self.scale, self.steps, generator=torch.Generator().manual_seed(0),
            **_OPTIONS[kind],
        )  # fmt: skip
        result = self.judged(found.images * 2 - 1)
        if kind not in (PLANAR, DDNM):
            result.disagreement = float(self.sphere.disagreement(found.views).square().mean().sqrt())
        return result

    @cached_property
    def sphere(self) -> TangentSphere:
        """The views."""
        return TangentSphere(self.truth.shape[-2:])

    def judged(self, x: Tensor) -> Enlarged:
        """Measure a result."""
        a, b = ((u.double().clamp(-1, 1) + 1) / 2 for u in (x, self.truth))
        north = a.shape[-2] // 6
        rows = torch.cat([(a - b).square()[..., :north, :], (a - b).square()[..., -north:, :]], -2)
        return Enlarged(
            images=a, psnr=float(ws_psnr(a, b).mean()), ssim=float(ws_ssim(a, b).mean()),
            poles=float(-10 * rows.mean().log10()), seam=seam(a) / seam(b), residual=self.residual(x),
        )  # fmt: skip

    def residual(self, x: Tensor) -> float:
        """How far the result is from reducing to the small picture, relative."""
        small = self.small.double()
        return float((self.operator(x.double()) - small).norm() / small.norm())

    def projected(self, images: Tensor) -> tuple[float, float, float]:
        """What one last projection does: WS-PSNR before and after, and the residual left, all without rounding."""
        x = images.double() * 2 - 1
        after = null_space_project(x, self.operator(self.truth.double()), self.operator)
        one, two = (float(ws_psnr(u, self.truth.double(), 2.0).mean()) for u in (x, after))
        return one, two, self.residual(after)


def seam(x: Tensor) -> float:
    """Mean difference of the columns that meet at +-180 degrees over that of the sixteen pairs beside them."""
    steps = (x - x.roll(1, -1)).abs().mean((0, 1, 2))
    beside = torch.cat([steps[1:9], steps[-8:]])
    return float(steps[0] / beside.mean())


class RoundTrip:
    """To the views and back, by how far the pictures are enlarged before they are sampled."""

    def __init__(self, panorama: Tensor) -> None:
        self.panorama = panorama

    def __call__(self) -> dict[int, float]:
        """WS-PSNR of what comes back."""
        x = (self.panorama + 1) / 2
        found = {}
        for factor in (1, 2, 4):
            sphere = TangentSphere(x.shape[-2:], pre_upscale=factor)
            found[factor] = float(ws_psnr(sphere.merge(sphere(x)), x).mean())
        return found


class Inverse:
    """The pseudo-inverse of the reduction: of the whole panorama, and block by block as the authors' code takes it."""

    def __init__(self, size: tuple[int, int], scale: int, block: int, generator: torch.Generator) -> None:
        self.scale, self.block = scale, block
        self.small = torch.randn(1, 3, size[0] // scale, size[1] // scale, generator=generator)
        self.operator = bicubic(scale, size, boundary=BOUNDARY, dtype=torch.float64)
        self.whole = self.operator.pinv(3e-2).to(torch.float32)
        self.parts = bicubic(scale, (block, block), dtype=torch.float64).pinv(3e-2).to(torch.float32)

    def run(self, blockwise: bool) -> Callable[[], Tensor]:
        """Apply one of them."""
        return self._blocks if blockwise else lambda: self.whole(self.small)

    def _blocks(self) -> Tensor:
        side = self.block // self.scale
        blocks = self.small.unflatten(-1, (-1, side)).unflatten(-3, (-1, side)).transpose(-2, -3)
        return self.parts(blocks).transpose(-2, -3).flatten(-4, -3).flatten(-2)

    def residual(self, x: Tensor) -> float:
        """How far it is from reducing to the small picture."""
        return float((self.operator(x.double()) - self.small).norm() / self.small.norm())


def test_panoramas(count: int, height: int) -> Tensor:
    """Test panoramas (count, 3, H, 2 H) in [-1, 1], averaged down."""
    whole = torch.stack(list(panoramas("test").values()))[:count] * 2 - 1
    return torch.nn.functional.avg_pool2d(whole, whole.shape[-2] // height)


def bandlimited(panoramas: Tensor) -> Tensor:
    """Panoramas without their fine detail: reduced by four and enlarged again."""
    return enlarge(bicubic(4, panoramas.shape[-2:], boundary=BOUNDARY)(panoramas), 4).clamp(-1, 1)
