"""Denoisers on few pictures and on many: what two on disjoint pictures have in common, and the bases they shrink in."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from hadamard.claims import Bar, Claim, Contender, Measure, Results
from hadamard.claims.diffusion.harmonic_denoiser_training import COUNTS, clothes, halves, name, train, trained
from hadamard.claims.plots import lines, pictures
from hadamard.diffusion import (
    GeneralisationReport,
    JacobianSpectrum,
    ScoreSampler,
    as_denoiser,
    denoiser_jacobian,
    generalisation_report,
    memorisation_report,
    sure,
)
from hadamard.images import psnr
from hadamard.proximal import soft
from hadamard.spectral import haar2d, ihaar2d

__all__ = ["claim", "train"]

OURS, NEAREST, HAAR = "hadamard", "nearest picture in pixels", "Haar coefficients, best threshold"
_SIGMAS, _HELD = (0.03, 0.1, 0.3, 0.6), (0.1, 0.3)
_AT = 0.1  # noise of the spectrum, of Stein's formula and of Haar's threshold
_SMALL, _LARGE = COUNTS[0], COUNTS[-1]


@dataclass
class Pair:
    """Both denoisers on so many pictures."""

    count: int
    samples: int
    pictures: int
    risks: int
    seed: int

    @cached_property
    def denoisers(self) -> list[Any]:
        """The two, as maps of a picture and its noise."""
        return [as_denoiser(net, "noise") for net in trained(self.count)]

    @cached_property
    def noisy(self) -> Tensor:
        """Test pictures with noise."""
        x = clothes("test")[: self.pictures]
        return x + _AT * torch.randn(x.shape, generator=torch.Generator().manual_seed(self.seed))

    @cached_property
    def report(self) -> GeneralisationReport:
        """What the two have in common."""
        (a, b), (train_a, train_b) = self.denoisers, halves(self.count)
        return generalisation_report(
            a, b, train_a, train_b, clothes("test"), _SIGMAS, self.samples,
            sampler=lambda model: ScoreSampler(model, sigma_L=0.1, h0=0.05, beta=0.5), most=self.pictures,
            generator=torch.Generator().manual_seed(self.seed),
        )  # fmt: skip

    def audit(self) -> dict[str, Any]:
        """The report, the spectrum at one picture, Stein's formula on many, and what should be exact."""
        denoise, y = self.denoisers[0], self.noisy
        x = clothes("test")[: self.risks]
        with torch.no_grad():
            clean = denoise(y, _AT)
            scaled = denoise.double()(2.5 * y[:50].double(), _AT) - 2.5 * denoise(y[:50].double(), _AT)
            off = float(scaled.norm() / (2.5 * denoise(y[:50].double(), _AT)).norm())
        denoise.float()
        error = (clean[: self.risks] - x).square().flatten(1).mean(1).double()
        guess = torch.tensor([sure(denoise, v, _AT)[0] for v in y[: self.risks]], dtype=torch.float64)
        spectra = [denoiser_jacobian(denoise, v, _AT) for v in y[:8]]
        return {
            "report": self.report, "spectra": spectra, "homogeneity": off,
            "psnr": psnr(clean, clothes("test")[: len(y)]),
            "remainder": max(s.remainder for s in spectra), "sure": float(guess.mean()), "error": float(error.mean()),
            "z": float((guess - error).mean().abs() / ((guess - error).std() / len(error) ** 0.5)),
        }  # fmt: skip

    def nearest(self) -> Any:
        """Distances of its samples to their nearest training picture, beside those of test pictures."""
        return memorisation_report(self.report.samples_a, halves(self.count)[0], clothes("test")[: self.pictures])

    def haar(self) -> float:
        """PSNR of soft thresholds in Haar's basis, the best one threshold for these very pictures."""
        x = clothes("test")[: self.pictures]
        return max(psnr(_shrink(self.noisy, t * _AT), x) for t in torch.linspace(0, 3, 31).tolist())


def _shrink(y: Tensor, threshold: float) -> Tensor:
    bands = haar2d(y)
    coarse = bands[:, 0]
    coarse = _shrink(coarse, threshold) if coarse.shape[-1] > 1 else coarse
    return ihaar2d(torch.cat([coarse[:, None], soft(bands[:, 1:], threshold)], 1))


def _problem(seed: int, samples: int, pictures: int, risks: int) -> Mapping[str, Pair]:
    return {f"{n} pictures": Pair(n, samples, pictures, risks, seed) for n in COUNTS}


def _reports(r: Results) -> dict[int, GeneralisationReport]:
    return {case.count: r.outcomes[key, OURS]["report"] for key, case in r.cases.items()}


def _gap(r: Results, count: int, choose: Callable[..., float]) -> float:
    report = _reports(r)[count]
    return choose(report.gap[report.sigmas.index(s)] for s in _HELD)


def _variance_ratio(r: Results) -> float:
    """Of the most pictures over the smaller one of 10 and 100, at the worse level."""
    reports = _reports(r)
    return max(
        reports[_LARGE].variance[k] / min(reports[n].variance[k] for n in COUNTS[:2])
        for k in (_SIGMAS.index(s) for s in _HELD)
    )


def _against(values: list[list[float]], sign: int) -> int:
    """How often a series that should rise (1) or fall (-1) does not."""
    return sum(sign * (b - a) <= 0 for series in values for a, b in pairwise(series))


def _gaps_that_rise(r: Results) -> int:
    return _against([[x.gap[_SIGMAS.index(s)] for x in _reports(r).values()] for s in _HELD], -1)


def _cosines_astray(r: Results) -> int:
    reports = _reports(r).values()
    return _against([[x.pairs for x in reports]], 1) + _against([[x.nearest for x in reports]], -1)


def _sheet(x: Tensor, columns: int = 8) -> Tensor:
    return torch.cat([torch.cat(list(row), -1) for row in x[: 2 * columns, 0].split(columns)])


def _closest(r: Results, count: int) -> Tensor:
    samples, known = _reports(r)[count].samples_a, halves(count)[0]
    unit = [u - u.mean(1, keepdim=True) for u in (samples.flatten(1), known.flatten(1))]
    unit = [u / u.norm(dim=1, keepdim=True).clamp(min=1e-9) for u in unit]
    return known[(unit[0] @ unit[1].T).argmax(1)]


def _plot(r: Results) -> list[dict[str, Any]]:
    reports = _reports(r)
    counts = list(reports)
    db = {f"{n} pictures, {part}": (list(x.sigmas), list(getattr(x, part)))
          for n, x in reports.items() if n in (_SMALL, _LARGE) for part in ("train", "test")}  # fmt: skip
    cosines = {
        "with the other's sample from the same noise": (counts, [x.pairs for x in reports.values()]),
        "with the nearest training picture": (counts, [x.nearest for x in reports.values()]),
        "among samples of one denoiser": (counts, [x.diversity for x in reports.values()]),
    }
    variance = {f"noise {s:g}": (counts, [x.variance[_SIGMAS.index(s)] for x in reports.values()]) for s in _SIGMAS}
    sheets = {}
    for n in (_SMALL, _LARGE):
        sheets[f"{n} pictures: samples of a"] = _sheet(reports[n].samples_a)
        sheets[f"{n} pictures: samples of b, same noise"] = _sheet(reports[n].samples_b)
        sheets[f"{n} pictures: nearest that a was trained on"] = _sheet(_closest(r, n))
    few, many = (r.outcomes[f"{n} pictures", OURS]["spectra"][0] for n in (_SMALL, _LARGE))
    clean = clothes("test")[0]
    axis = list(range(1, many.eigenvalues.numel() + 1))
    shrinkage = {f"{_LARGE} pictures": (axis, many.eigenvalues.tolist()),
                 f"{_SMALL} pictures": (axis, few.eigenvalues.tolist()),
                 f"{_LARGE} pictures, best factors": (axis, many.oracle(clean).tolist())}  # fmt: skip
    vectors = {"picture": clean[0] - clean.mean()} | {
        f"{n}, factor {float(s.eigenvalues[k]):.2f}": _upright(s.eigenvectors[k, 0])
        for n, s in ((_LARGE, many), (_SMALL, few)) for k in range(6)
    }  # fmt: skip
    return [
        lines(db, x="noise (standard deviation)", y="PSNR (dB)", log="x",
              caption=f"{_SMALL} pictures are known by heart: far better on them than on test pictures. With {_LARGE} "
              "the curves for training and test pictures lie on each other."),
        lines(cosines, x="training pictures of each denoiser", y="cosine similarity (median)", log="x",
              caption="The two denoisers' samples grow alike with the number of pictures. How alike pictures of 64 "
              "pixels are anyway, the line of the samples among themselves says."),
        lines(variance, x="training pictures of each denoiser", y="variance of the denoised picture", log="xy",
              caption="Half the mean squared difference between the two denoisers on test pictures."),
        pictures(sheets, limits=(0, 1),
                 caption=f"From the same noise. {_SMALL} pictures: each returns nearly what it was trained on. "
                 f"{_LARGE}: both return nearly the same, and something new."),
        lines(shrinkage, x="number of the eigenvector", y="factor",
              caption=f"Factors by which one test picture is shrunk (noise {_AT:g}). The asymmetry of the Jacobian is "
              f"{many.asymmetry:.2f} with {_LARGE} pictures and {few.asymmetry:.2f} with {_SMALL}: where it is large, "
              "the eigenvectors are those of the symmetric part only."),
        pictures(vectors, limits=(-0.5, 0.5),
                 caption="A test picture and the first six eigenvectors at it: oscillations that follow its outline."),
    ]  # fmt: skip


def _upright(v: Tensor) -> Tensor:
    return v * v.sum().sign() / v.abs().max() / 2


_C1 = "Homogeneity: fhat(c y) = c fhat(y), fhat(y) = J y (<= 1e-5 rel.)."
_C2A = (
    "(a) train-test PSNR gap decreases monotonically, >= 3 dB at the smallest N after convergence and <= 0.3 dB at the "
    "largest"
)
_C2B = "(b) model variance E||fA-fB||^2/2 at N max <= 0.1x of N = 10-100"
_C2C = "(c) cos(A-sample,B-sample) increases with N while cos(sample, nearest train) decreases."
_C2D = "require sample diversity (mean pairwise cos among A-samples <= 0.7) before cosine numbers count"
_WHY_GAPS = (
    "From 1000 pictures on there is no gap left: what remains, below 0.3 dB, is that the pictures it is measured on "
    "are not the same, and not equally hard."
)
_WHY_VARIANCE = (
    "At 8 x 8 pixels 100 pictures are nearly enough for networks of this size: against 10 the ratio is 0.07 at "
    "noise 0.1 and 0.16 at 0.3, against 100 it is 0.6 and 0.7. What is left is the difference of two trainings."
)
_WHY_COSINES = (
    "The cosine with the other's sample rises throughout. That with the nearest training picture is a maximum over the "
    "set: among 20,000 pictures of 64 pixels one is always near. Beside held-out pictures the distance grows with each "
    "number of pictures, from 0.7 to 1.2 of theirs."
)
_WHY_DIVERSITY = (
    "The test pictures themselves have 0.57. These samples lie nearer to their mean: the networks shrink much, and the "
    "sampler puts little noise back; with smaller steps (h0 = 0.01, beta = 0.1) ten pictures gave 0.70, but 3 of 48 "
    "batches diverged."
)
_C4 = "SURE identity: |SURE - MSE| within 3 standard errors."


def _read(key: str) -> Callable[[Any, Any], float | None]:
    return lambda case, out: out[key] if isinstance(out, dict) else None


def _told(what: Callable[[GeneralisationReport], float]) -> Callable[[Any, Any], float | None]:
    return lambda case, out: what(out["report"]) if isinstance(out, dict) else None


def _spectral(what: Callable[[JacobianSpectrum], float]) -> Callable[[Any, Any], float | None]:
    return lambda case, out: sum(map(what, out["spectra"])) / len(out["spectra"]) if isinstance(out, dict) else None


def _worst(key: str) -> Callable[[Results], float]:
    return lambda r: max(r.outcomes[case, OURS][key] for case in r.cases)


claim = Claim(
    key="harmonic_denoiser",
    statement="Two denoisers on disjoint pictures tell memory from knowledge. On ten pictures each, they are far "
    "better on those than on others, and what they sample lies near to them; on 20,000 they are as good on "
    "others and sample alike from the same noise. The Jacobian's eigenvectors show what each keeps.",
    paper_figure="Faces of 80 x 80 pixels: up to about 1000 training pictures samples are copies, at 100,000 those of "
    "two networks are nearly identical and far from the training set (figures 1 and 2).",
    sizes={
        "quick": {"samples": 24, "pictures": 400, "risks": 60},
        "full": {"samples": 200, "pictures": 2000, "risks": 500},
    },
    problem=_problem,
    contenders=[
        Contender(OURS, lambda case: case.audit(), once=True),
        Contender(NEAREST, lambda case: case.nearest(), "peer", once=True),
        Contender(HAAR, lambda case: case.haar(), "baseline", lambda case: case == f"{_LARGE} pictures", once=True),
    ],
    measures=[
        Measure("PSNR at noise 0.1 (test)", "dB",
                lambda case, out: out["psnr"] if isinstance(out, dict) else out if isinstance(out, float) else None),
        Measure("gap between training and test, noise 0.1", "dB", _told(lambda x: x.gap[1])),
        Measure("gap between training and test, noise 0.3", "dB", _told(lambda x: x.gap[2])),
        Measure("variance between the two, noise 0.1", "", _told(lambda x: x.variance[1])),
        Measure("variance between the two, noise 0.3", "", _told(lambda x: x.variance[2])),
        Measure("cosine of samples with the other's", "", _told(lambda x: x.pairs)),
        Measure("cosine of samples with the nearest training picture", "", _told(lambda x: x.nearest)),
        Measure("cosine among samples", "", _told(lambda x: x.diversity)),
        Measure("asymmetry of the Jacobian", "", _spectral(lambda s: s.asymmetry)),
        Measure("effective dimension (of 64)", "", _spectral(lambda s: float(s.eigenvalues.sum()))),
        Measure("mean squared error by Stein's formula", "", _read("sure")),
        Measure("mean squared error", "", _read("error")),
        Measure("nearest training picture, over held out", "",
                lambda case, out: getattr(out, "ratio", None)),
        Measure("copies (as near as the nearest 1 % held out)", "",
                lambda case, out: getattr(out, "duplicates", None)),
    ],
    bars=[
        Bar("relative difference of D(2.5 y) from 2.5 D(y), the worst network", "card, claim 1", _C1, "<=", 1e-5,
            _worst("homogeneity")),
        Bar("relative difference of D(y) from J y, the worst network and picture", "card, claim 1", _C1, "<=", 1e-5,
            _worst("remainder")),
        Bar("10 pictures: PSNR on them above that on test pictures, at noise 0.1 and 0.3 (the smaller), in dB",
            "card, claim 2", _C2A, ">=", 3, lambda r: _gap(r, _SMALL, min), headline=True),
        Bar("20,000 pictures: the same (the larger), in dB", "card, claim 2", _C2A, "<=", 0.3,
            lambda r: _gap(r, _LARGE, max), headline=True),
        Bar("times that it does not fall from one number of pictures to the next", "card, claim 2",
            _C2A, "<=", 0, _gaps_that_rise, why=_WHY_GAPS),
        Bar("variance between the two on test pictures, 20,000 over 10 or 100, at the worse level", "card, claim 2",
            _C2B, "<=", 0.1, _variance_ratio, why=_WHY_VARIANCE),
        Bar("times that the cosines of samples do not move as they should", "card, claim 2",
            _C2C, "<=",
            0, _cosines_astray, why=_WHY_COSINES),
        Bar("cosine among samples, the largest", "card, claim 2", _C2D, "<=", 0.7,
            lambda r: max(x.diversity for x in _reports(r).values()), why=_WHY_DIVERSITY),
        Bar("Stein's estimate of the error: standard errors off, the worst network", "card, claim 4", _C4, "<=", 3,
            _worst("z")),
    ],
    plot=_plot,
    threads=1,
    rounds={"quick": 1, "full": 1},
    checkpoints=[name(n) for n in COUNTS],
)  # fmt: skip
