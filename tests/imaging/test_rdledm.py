import warnings

import h5py
import numpy as np
import pytest
import torch
import typer
from sklearn.exceptions import ConvergenceWarning
from typer.testing import CliRunner

from hadamard.cli.apply.rdledm import apply
from hadamard.cli.files import read_array, write_array
from hadamard.data.cine import acquire, beating_heart, coil_maps, kt_mask
from hadamard.imaging import RDLEDM, LowRankPrior, TVPrior, rdledm
from hadamard.imaging._operators import Part, Total, Unfold
from hadamard.imaging._primal_dual import Term, condat_vu
from hadamard.imaging._priors import singular_values
from hadamard.operators import Fourier, Masked, Matrix
from hadamard.proximal import soft
from hadamard.spectral.fft import fft_centred

FRAMES, SIZE = 6, 16


@pytest.fixture(scope="module")
def scan():
    series, mask = beating_heart(FRAMES, SIZE), kt_mask(FRAMES, SIZE, SIZE, 2)
    return series, mask, acquire(series, mask)


def quiet(*args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return rdledm(*args, **options)


@pytest.mark.parametrize("mode", ["casorati", "mode-h", "mode-w"])
def test_unfoldings_permute(mode):
    op = Unfold((1, 2, 3, 4), mode)
    x = torch.randn(5, 1, 2, 3, 4)
    assert torch.equal(op.A_adjoint(op.A(x)), x)
    dense = op.to_dense()
    assert torch.equal(dense @ dense.T, torch.eye(24))
    if mode == "mode-w":
        assert torch.equal(op.A(x)[0, 1], x[0, 0, :, :, 1].reshape(-1))


@pytest.mark.parametrize("make", [lambda: Part((2, 2, 1, 3), 1), lambda: Total((2, 2, 1, 3))])
def test_parts_and_totals_are_adjoint(make):
    op = make()
    dense = op.to_dense()
    y = torch.randn(1, 2, 1, 3)
    assert torch.allclose(op.A_adjoint(y).flatten(), dense.T @ y.flatten())


def test_condat_vu_finds_the_lasso_by_both_splittings(generator):
    M = torch.randn(8, 5, dtype=torch.float64, generator=generator)
    y = torch.randn(8, dtype=torch.float64, generator=generator)
    L = float(torch.linalg.matrix_norm(M, 2) ** 2)
    eye = Term(lambda p, s: p.clamp(-0.5, 0.5), Matrix(torch.eye(5, dtype=torch.float64)), 1.0)
    start = torch.zeros(5, dtype=torch.float64)
    smooth = condat_vu(
        lambda x: M.T @ (M @ x - y), L, lambda v, t: v, [eye], start, step=1 / L, tol=1e-12, max_iter=5000
    )
    fit = Term(lambda p, s: (p - s * y) / (1 + s), Matrix(M), L)
    dual = condat_vu(None, 0.0, lambda v, t: soft(v, 0.5 * t), [fit], start, step=lambda i: max(0.5 / i, 0.1),
                     relaxation=1.8, tol=1e-12, max_iter=5000)  # fmt: skip
    assert torch.allclose(smooth.value, dual.value, atol=1e-8)
    gradient = M.T @ (M @ dual.value - y)
    active = dual.value.abs() > 1e-6
    assert torch.allclose(gradient[active], -0.5 * dual.value[active].sign(), atol=1e-6)
    assert gradient.abs().max() <= 0.5 + 1e-6


@pytest.mark.parametrize("prior", [TVPrior("space", 0.3), TVPrior("time", 0.3), LowRankPrior("casorati"),
                                   LowRankPrior("mode-h", 0.5)])  # fmt: skip
def test_prox_is_the_minimiser(prior, generator):
    x = torch.randn(1, 3, 4, 5, dtype=torch.complex128, generator=generator)
    objective = lambda u: 0.7 * prior.value(u) + 0.5 * (u - x).abs().square().sum()  # noqa: E731
    best = prior.prox(x, 0.7)
    for scale in (1e-1, 1e-2):
        for _ in range(20):
            other = best + scale * torch.randn(x.shape, dtype=x.dtype, generator=generator)
            assert objective(other) > objective(best)


def test_tv_prox_agrees_with_scikit_image(generator):
    from skimage.restoration import denoise_tv_chambolle

    x = torch.rand(1, 1, 12, 12, dtype=torch.float64, generator=generator)
    ours = TVPrior("space").prox(x, 0.1)
    theirs = torch.from_numpy(denoise_tv_chambolle(x[0, 0].numpy(), weight=0.1, eps=1e-9, max_num_iter=4000))
    assert torch.allclose(ours[0, 0], theirs, atol=2e-3)


def test_singular_values_of_the_gram_matrix(generator):
    Z = torch.randn(4, 50, dtype=torch.complex128, generator=generator)
    assert torch.allclose(singular_values(Z).flip(-1), torch.linalg.svdvals(Z))
    assert torch.allclose(singular_values(Z.mH).flip(-1), torch.linalg.svdvals(Z))


def test_it_improves_on_zero_filling_and_converges(scan):
    series, mask, y = scan
    result = rdledm(y, mask, max_iter=300, tol=1e-4)
    assert result.converged
    assert result.image.shape == result.error.shape == series.shape
    zero_filled = torch.fft.fftshift(torch.fft.ifft2(torch.fft.ifftshift(y, (-2, -1)), norm="ortho"), (-2, -1))
    assert (result.image - series).norm() < 0.4 * (zero_filled - series).norm()
    assert result.objective[-1] <= min(result.objective) * 1.001


def test_full_sampling_without_weights_is_exact(scan):
    series, _, _ = scan
    full = torch.ones(SIZE, SIZE)
    result = rdledm(fft_centred(series), full, tv=None, nuclear=None, error=None, tol=1e-6)
    assert torch.allclose(result.image, series, atol=1e-4)


@pytest.mark.slow
def test_optimum_agrees_with_the_other_splitting(scan):
    """The data term as a smooth function, on the same model without the error component."""
    _, mask, y = scan
    y, mask = y.to(torch.complex128), mask.double()
    op = Masked(Fourier((1, FRAMES, SIZE, SIZE)), mask)
    scale = op.A_adjoint(y[None]).abs().max()
    data, tv = y[None] / scale, TVPrior("space", 2e-3)
    term = Term(lambda p, s: tv.project_dual(p), tv.operator(op.in_shape), 8.0)
    smooth = condat_vu(lambda x: op.A_adjoint(op.A(x) - data), 1.0, lambda v, t: v, [term], op.A_adjoint(data),
                       step=1.0, tol=1e-6, max_iter=1000)  # fmt: skip
    ours = rdledm(y, mask, tv={"space": 2e-3}, nuclear=None, error=None, tol=1e-6, max_iter=1000)
    want = 0.5 * (op.A(smooth.value) - data).norm() ** 2 + tv.value(smooth.value)
    assert ours.value == pytest.approx(float(want), rel=1e-3)


def test_phase_and_scale_pass_through(scan):
    _, mask, y = scan
    turn = 7.0 * torch.exp(torch.tensor(0.8j))
    plain = quiet(y, mask, max_iter=30).image
    assert torch.allclose(quiet(turn * y, mask, max_iter=30).image, turn * plain, atol=1e-4)


def test_frames_may_be_permuted_without_time(scan):
    _, mask, y = scan
    order = torch.tensor([3, 0, 5, 1, 2, 4])
    options = {"tv": {"space": 1e-3}, "max_iter": 30}
    plain = quiet(y, mask, **options).image
    assert torch.allclose(quiet(y[order], mask[order], **options).image, plain[order], atol=1e-5)


def test_dear_errors_vanish_and_outliers_are_taken_up(scan):
    series, mask, y = scan
    assert quiet(y, mask, error={"l1": 10.0}, max_iter=30).error.abs().max() == 0
    full = torch.ones(FRAMES, SIZE, SIZE, dtype=torch.bool)
    spiky = acquire(series, full, outliers=0.01)
    with_error, without = (quiet(spiky, full, error=e, max_iter=100) for e in ({"l1": 5e-3}, None))
    assert (with_error.image - series).norm() < 0.6 * (without.image - series).norm()


def test_every_kind_of_error_and_unfolding_runs(scan):
    _, mask, y = scan
    result = quiet(y, mask, nuclear={"mode-h": 1e-3, "mode-w": 1e-3},
                   error={"l1": 0.01, "fro": 0.1, "tv": 0.01, "nuclear": 0.01}, max_iter=20)  # fmt: skip
    assert torch.isfinite(result.image).all()


def test_coils_batch_and_centring_give_the_same_series(scan):
    series, mask, y = scan
    sens = coil_maps(3, SIZE, SIZE)
    kspace = acquire(series, mask, sens, noise=0.0)
    one = quiet(kspace, mask, sens, max_iter=60)
    assert one.image.shape == (1, FRAMES, SIZE, SIZE)
    assert (one.image[0] - series).norm() < 0.2 * series.norm()
    louder = quiet(kspace, mask, 3 * sens, max_iter=60)  # the series then is a third
    assert torch.allclose(3 * louder.image, one.image, atol=1e-3)
    plain = quiet(y, mask, max_iter=20)
    batch = quiet(torch.stack([y, 5 * y])[:, None], mask, max_iter=20)
    assert torch.allclose(batch.image[0, 0], plain.image, atol=1e-5)
    assert torch.allclose(batch.image[1, 0], 5 * plain.image, atol=1e-4)
    corner = quiet(fft_corner(y), torch.fft.ifftshift(mask, (-2, -1)), centred=False, max_iter=20)
    assert torch.allclose(torch.fft.fftshift(corner.image, (-2, -1)).abs()[:, 4:12, 4:12],
                          plain.image.abs()[:, 4:12, 4:12], atol=0.2)  # fmt: skip


def fft_corner(y):
    return torch.fft.ifftshift(y, (-2, -1))


class DynamicMRI:
    """A physics of deepinv's kind: two real channels."""

    def __init__(self, mask):
        self.op = Masked(Fourier((FRAMES, SIZE, SIZE)), mask.float())

    def A(self, x, **_):
        y = self.op.A(torch.complex(x[:, 0], x[:, 1]))
        return torch.stack([y.real, y.imag], 1)

    def A_adjoint(self, y, **_):
        x = self.op.A_adjoint(torch.complex(y[:, 0], y[:, 1]))
        return torch.stack([x.real, x.imag], 1)


def test_module_on_physics_equals_the_function(scan):
    _, mask, y = scan
    plain = rdledm(y, mask, max_iter=150, tol=1e-3).image
    op = Masked(Fourier((1, FRAMES, SIZE, SIZE)), mask.float())
    model = RDLEDM(max_iter=150, tol=1e-3)
    complex_ = model(y[None, None], op)
    assert complex_.shape == (1, 1, FRAMES, SIZE, SIZE)
    assert (complex_[0, 0] - plain).norm() < 2e-2 * plain.norm()
    channels = model(torch.stack([y.real, y.imag])[None], DynamicMRI(mask))
    assert channels.shape == (1, 2, FRAMES, SIZE, SIZE)
    assert (channels[0, 0] - plain.real).norm() < 2e-2 * plain.norm()


def test_gradient_passes_through(generator):
    y = torch.randn(2, 2, 3, dtype=torch.complex128, generator=generator, requires_grad=True)
    mask = torch.ones(2, 3, dtype=torch.float64)
    run = lambda v: quiet(v, mask, tv={"space": 0.02}, nuclear={"casorati": 0.01}, max_iter=3).image  # noqa: E731
    assert torch.autograd.gradcheck(run, (y,), atol=1e-4, fast_mode=True)


def test_single_frame_empty_frames_callback_and_progress(scan):
    _, mask, y = scan
    assert quiet(y[:1], mask[:1], max_iter=10).image.shape == (1, SIZE, SIZE)
    gap = mask.clone()
    gap[2] = False
    with pytest.warns(UserWarning, match="1 frame"):
        quiet(y, gap, max_iter=10)
    seen = []
    quiet(y, mask, max_iter=20, callback=lambda *a: seen.append(a), progress=True)
    assert [s[0] for s in seen] == [10, 20]
    assert seen[0][1].shape == (1, 1, FRAMES, SIZE, SIZE)
    with pytest.warns(ConvergenceWarning, match="rdledm stopped after 3"):
        rdledm(y, mask, max_iter=3)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "change, message",
    [
        ({"y": torch.ones(2, 4, 4)}, "y must have a complex dtype"),
        ({"y": torch.full((2, 4, 4), float("nan"), dtype=torch.complex64)}, "y must be finite"),
        ({"y": torch.zeros(2, 4, 4, dtype=torch.complex64)}, "y must not be zero everywhere"),
        ({"y": torch.ones(4, 4, dtype=torch.complex64)}, "y must have 3 or 4 or 5 dimension"),
        ({"y": torch.ones(3, 2, 4, 4, dtype=torch.complex64)}, "sens must be given for 3 coils"),
        ({"mask": torch.ones(3, 4, 4)}, "mask must have shape"),
        ({"mask": torch.full((4, 4), 0.5)}, "mask must hold zeros and ones"),
        ({"sens": torch.ones(2, 4, 4, dtype=torch.complex64)}, "sens must have shape"),
        ({"tv": {"space": -1.0}}, r"tv\['space'\] must be >= 0"),
        ({"tv": {"diagonal": 1.0}}, "a key of tv must be one of"),
        ({"nuclear": {"mode-t": 1.0}}, "a key of nuclear must be one of"),
        ({"error": {"l1": 0.0}}, "error must have a positive weight"),
        ({"max_iter": 0}, "max_iter must be >= 1"),
    ],
)
def test_bad_input(change, message):
    given = {"y": torch.ones(2, 4, 4, dtype=torch.complex64), "mask": torch.ones(4, 4), **change}
    with pytest.raises((ValueError, TypeError), match=message):
        rdledm(**given)


@pytest.mark.bad_input
def test_bad_physics():
    with pytest.raises(TypeError, match="physics must have A and A_adjoint, got int"):
        RDLEDM()(torch.ones(1, 1, 2, 4, 4, dtype=torch.complex64), 3)


app = typer.Typer()
app.command()(apply)


def command(*args):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return CliRunner().invoke(app, [str(a) for a in (*args, "--max-iter", 20, "--no-progress")])


def test_command_reconstructs_kspace_and_series(scan, tmp_path):
    series, mask, y = scan
    write_array(tmp_path / "scan.npz", {"kspace": y.numpy(), "mask": mask.numpy()})
    assert command(tmp_path / "scan.npz", "--out", tmp_path / "out.npz").exit_code == 0
    want = quiet(y, mask, max_iter=20)
    assert np.allclose(read_array(tmp_path / "out.npz", "image"), want.image.numpy(), atol=1e-5)
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file["raw/data"], file["mask"] = y.numpy(), mask.numpy()
    assert command(tmp_path / "scan.h5", "--out", tmp_path / "out.nii.gz", "--key", "raw/data").exit_code == 0
    assert read_array(tmp_path / "out.nii.gz").shape == (SIZE, SIZE, 1, FRAMES)
    volume = np.moveaxis(series.abs().numpy(), 0, -1)[:, :, None].repeat(2, axis=2).astype(np.float32)
    write_array(tmp_path / "series.nii", volume)
    assert command(tmp_path / "series.nii", "--out", tmp_path / "again.nii", "--acceleration", 2).exit_code == 0
    assert np.linalg.norm(read_array(tmp_path / "again.nii") - volume) < 0.3 * np.linalg.norm(volume)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "name, options, message",
    [
        ("none.npz", (), "no such file"),
        ("cut.npz", (), "damaged or truncated"),
        ("keys.npz", (), "holds no array 'kspace'"),
        ("real.npz", (), "complex dtype"),
        ("shape.npz", (), "mask must have shape"),
        ("scan.txt", (), "unknown ending"),
        ("empty.npz", (), "the file is empty"),
        ("keys.npz", ("--acceleration", 2), "is for an image series"),
        ("series.nii", (), "give --acceleration"),
    ],
)
def test_command_says_what_is_wrong(tmp_path, name, options, message):
    y = np.ones((2, 4, 4), dtype=np.complex64)
    write_array(tmp_path / "keys.npz", {"data": y})
    (tmp_path / "cut.npz").write_bytes((tmp_path / "keys.npz").read_bytes()[:100])
    write_array(tmp_path / "real.npz", {"kspace": y.real, "mask": y.real})
    write_array(tmp_path / "shape.npz", {"kspace": y, "mask": np.ones((3, 3))})
    write_array(tmp_path / "series.nii", np.ones((4, 4, 2), dtype=np.float32))
    (tmp_path / "scan.txt").write_text("x")
    (tmp_path / "empty.npz").touch()
    result = command(tmp_path / name, "--out", tmp_path / "out.npz", *options)
    assert isinstance(result.exception, (ValueError, TypeError, OSError))
    assert message in str(result.exception)
    assert "\n" not in str(result.exception)
