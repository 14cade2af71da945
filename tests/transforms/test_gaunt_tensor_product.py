"""Gaunt tensor products: closed forms, the integrals themselves, e3nn's product on the same paths, equivariance."""

import copy
import inspect
import pickle
from math import pi, sqrt

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import gamma, sph_harm_y
from sympy.physics.wigner import real_gaunt

from hadamard.transforms import GauntConv, GauntTensorProduct, gaunt_power
from hadamard.transforms import _gaunt_backends as backends
from hadamard.transforms import _spherical as sphere

o3 = pytest.importorskip("e3nn.o3")

X = torch.zeros(2, 4)
BACKENDS = ["grid", "fft", "dense"]
NORMALIZATIONS = ["component", "norm", "integral"]
PLAIN = {"weights": None, "path_normalization": "none", "dtype": torch.float64}


def up_to(lmax, channels=1):
    return o3.Irreps([(channels, (l, (-1) ** l)) for l in range(lmax + 1)])


def draw(irreps, *batch, generator, dtype=torch.float64):
    return torch.randn(*batch, o3.Irreps(irreps).dim, generator=generator, dtype=dtype)


def directions(count, generator):
    return torch.nn.functional.normalize(torch.randn(count, 3, generator=generator, dtype=torch.float64), dim=-1)


def values(x, irreps, points, normalization):
    """A single-channel function at points, by e3nn's harmonics."""
    return x @ o3.spherical_harmonics(o3.Irreps(irreps), points, True, normalization=normalization).mT


@pytest.fixture
def double():
    """e3nn's modules are exact in float64 only where they are made in it."""
    previous = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(previous)


# ---- tables ----


def test_harmonics_are_e3nns(generator):
    r = directions(20, generator)
    theta, phi = torch.acos(r[:, 1]).numpy(), torch.atan2(r[:, 0], r[:, 2]).numpy()
    expected = o3.spherical_harmonics(list(range(12)), r, True, normalization="integral").T.numpy()
    np.testing.assert_allclose(sphere.spherical_harmonics(range(12), theta, phi), expected, atol=1e-14)


def test_harmonics_of_high_degree_are_scipys():
    theta, phi, l = np.linspace(0.01, 3.1, 50), np.linspace(-3, 3, 50), 32
    ours = sphere.spherical_harmonics([l], theta, phi)
    for m in (0, 1, 7, 31, 32):  # scipy has the Condon-Shortley phase and complex exponentials
        theirs = (-1) ** m * (sqrt(2) if m else 1) * sph_harm_y(l, m, theta, phi)
        np.testing.assert_allclose(ours[l + m], theirs.real, atol=1e-12)
        if m:
            np.testing.assert_allclose(ours[l - m], theirs.imag, atol=1e-12)


@pytest.mark.parametrize("degree", [0, 1, 6, 7])
def test_half_sphere_integrates_even_polynomials(degree):
    grid = sphere.half_sphere(degree)
    x, y, z = grid.points.T
    assert grid.weight.sum() == pytest.approx(4 * pi)
    together = grid.points @ grid.points.T
    assert together.min() > -1 + 1e-9  # no two opposite points
    for powers in ((2, 0, 0), (0, 2, 0), (0, 0, 2), (1, 1, 0), (2, 2, 2), (0, 6, 0), (6, 0, 0)):
        if sum(powers) <= degree:
            a, b, c = powers
            odd = any(p % 2 for p in powers)
            exact = (
                0
                if odd
                else 2 * gamma((a + 1) / 2) * gamma((b + 1) / 2) * gamma((c + 1) / 2) / gamma((sum(powers) + 3) / 2)
            )
            assert (grid.weight * x**a * y**b * z**c).sum() == pytest.approx(exact, abs=1e-13)


def test_integrals_are_sympys():
    """Sympy's real harmonics have their polar axis along z and their sines at negative m, as ours have along y."""
    for l1, l2, l3 in ((0, 0, 0), (1, 1, 0), (1, 1, 2), (2, 1, 3), (2, 2, 2), (3, 2, 1)):
        ours = sphere.gaunt(l1, l2, l3)
        for index in np.ndindex(ours.shape):
            m = [int(i) - l for i, l in zip(index, (l1, l2, l3))]
            phase = (-1) ** sum(k % 2 for k in m)
            assert ours[index] == pytest.approx(phase * float(real_gaunt(l1, l2, l3, *m)), abs=1e-13)


def test_integrals_are_clebsch_gordan_coefficients_times_a_number():
    for l1 in range(4):
        for l2 in range(4):
            for l3 in range(abs(l1 - l2), l1 + l2 + 1):
                factor = sqrt(sphere.coupling(l1, l2, l3))
                np.testing.assert_allclose(
                    sphere.gaunt(l1, l2, l3), factor * o3.wigner_3j(l1, l2, l3, dtype=torch.float64).numpy(), atol=1e-13
                )
                assert (factor > 0) == ((l1 + l2 + l3) % 2 == 0)
    assert sphere.coupling(1, 1, 3) == 0


# ---- the product ----


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_product_of_functions(backend, normalization, generator):
    """The result's values at random points are the products of the values."""
    product = GauntTensorProduct(up_to(3), up_to(2), normalization=normalization, backend=backend, **PLAIN)
    x, y, r = draw(up_to(3), 4, generator=generator), draw(up_to(2), 4, generator=generator), directions(30, generator)
    expected = values(x, up_to(3), r, normalization) * values(y, up_to(2), r, normalization)
    torch.testing.assert_close(values(product(x, y), up_to(5), r, normalization), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_times_a_function_is_the_function(backend, generator):
    x = draw(up_to(4, 2), 3, generator=generator)
    for normalization, one in (("component", 1.0), ("norm", 1.0), ("integral", sqrt(4 * pi))):
        product = GauntTensorProduct(up_to(4, 2), "0e", normalization=normalization, backend=backend, **PLAIN)
        torch.testing.assert_close(product(x, torch.full((1,), one, dtype=torch.float64)), x, rtol=0, atol=1e-13)


def test_vectors_give_dot_product_and_traceless_square(generator):
    """1o x 1o: the function (3 in component normalisation) a.r b.r = a.b / 3 + ..., by hand."""
    a, b = draw("1o", 6, generator=generator), draw("1o", 6, generator=generator)
    z = GauntTensorProduct("1o", "1o", **PLAIN)(a, b)
    torch.testing.assert_close(z[:, 0], (a * b).sum(-1))
    r = directions(8, generator)
    torch.testing.assert_close(values(z, "0e+2e", r, "component"), 3 * (a @ r.T) * (b @ r.T))


def test_parseval(generator):
    """The integral of the squared product is the sum of the squares of its coefficients."""
    x, y = draw(up_to(3), generator=generator), draw(up_to(3), generator=generator)
    z = GauntTensorProduct(up_to(3), up_to(3), normalization="integral", **PLAIN)(x, y)
    grid = sphere.half_sphere(12)
    every = torch.from_numpy(np.concatenate([grid.points, -grid.points]))
    squares = (values(x, up_to(3), every, "integral") * values(y, up_to(3), every, "integral")).square()
    torch.testing.assert_close(squares @ torch.from_numpy(np.tile(grid.weight / 2, 2)), z.square().sum())


def test_commutes_and_associates(generator):
    x, y, z = (draw(up_to(l, 2), 3, generator=generator) for l in (2, 1, 3))
    xy, yx = (
        GauntTensorProduct(up_to(2, 2), up_to(1, 2), **PLAIN),
        GauntTensorProduct(up_to(1, 2), up_to(2, 2), **PLAIN),
    )
    torch.testing.assert_close(xy(x, y), yx(y, x))
    yz = GauntTensorProduct(up_to(1, 2), up_to(3, 2), **PLAIN)
    left = GauntTensorProduct(up_to(3, 2), up_to(3, 2), **PLAIN)(xy(x, y), z)
    right = GauntTensorProduct(up_to(2, 2), up_to(4, 2), **PLAIN)(x, yz(y, z))
    torch.testing.assert_close(left, right)


@settings(max_examples=20, deadline=None)
@given(
    st.permutations(range(5)).flatmap(lambda p: st.integers(1, 5).map(lambda k: p[:k])),
    st.permutations(range(4)).flatmap(lambda p: st.integers(1, 4).map(lambda k: p[:k])),
    st.sampled_from(NORMALIZATIONS),
    st.sampled_from(["element", "none"]),
    st.sampled_from([(1, 1), (3, 3), (1, 3), (3, 1)]),
    st.integers(0, 2**31),
)
def test_backends_agree_on_any_degrees(degrees1, degrees2, normalization, path_normalization, muls, seed):
    """Any subset of degrees in any order, either operand shared by all channels, weights and all."""
    generator = torch.Generator().manual_seed(seed)
    irreps = [o3.Irreps([(mul, (l, (-1) ** l)) for l in degrees]) for mul, degrees in zip(muls, (degrees1, degrees2))]
    options = {"normalization": normalization, "path_normalization": path_normalization, "dtype": torch.float64}
    dense, grid, fft = (GauntTensorProduct(*irreps, backend=b, **options) for b in ("dense", "grid", "fft"))
    x, y = draw(irreps[0], 2, generator=generator), draw(irreps[1], 2, generator=generator)
    w = torch.randn(2, dense.weight_numel, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(grid(x, y, w), dense(x, y, w), rtol=0, atol=1e-12)
    torch.testing.assert_close(fft(x, y, w), dense(x, y, w), rtol=0, atol=1e-12)


@pytest.mark.parametrize("normalization", ["component", "norm"])
def test_path_weights_are_e3nns(normalization, generator, double):
    """With a weight for each path it is o3.TensorProduct on the paths that Gaunt has, weight by weight."""
    irreps, out = up_to(3, 4), o3.Irreps("4x2e + 4x0e + 4x1o")
    ours = GauntTensorProduct(irreps, irreps, out, normalization=normalization, weights="path", dtype=torch.float64)
    order = [ir.l for _, ir in out]
    instructions = [(a, b, order.index(c), "uuu", True) for a, b, c in ours.paths]
    theirs = o3.TensorProduct(irreps, irreps, out, instructions, irrep_normalization=normalization)
    assert ours.weight_numel == theirs.weight_numel
    x, y = draw(irreps, 5, generator=generator), draw(irreps, 5, generator=generator)
    w = torch.randn(theirs.weight_numel, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(ours(x, y, w), theirs(x, y, w), rtol=0, atol=1e-12)


def test_degree_weights_are_products_of_path_weights(generator):
    irreps = up_to(2, 3)
    options = {"path_normalization": "none", "dtype": torch.float64}
    by_degree = GauntTensorProduct(irreps, irreps, 2, **options)
    by_path = GauntTensorProduct(irreps, irreps, 2, weights="path", **options)
    w = torch.randn(9, 3, generator=generator, dtype=torch.float64)
    product = torch.stack([w[a] * w[3 + b] * w[6 + c] for a, b, c in by_path.paths])
    x, y = draw(irreps, 5, generator=generator), draw(irreps, 5, generator=generator)
    torch.testing.assert_close(by_degree(x, y, w.flatten()), by_path(x, y, product.flatten()))


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_outputs_have_the_variance_of_e3nn(normalization, generator):
    product = GauntTensorProduct(up_to(2, 8), up_to(3, 8), 4, normalization=normalization, dtype=torch.float64)
    v = {l: 1 / (2 * l + 1) if normalization == "norm" else 1 for l in range(5)}
    x, y = draw(up_to(2, 8), 4000, generator=generator), draw(up_to(3, 8), 4000, generator=generator)
    for irreps, operand in ((product.irreps_in1, x), (product.irreps_in2, y)):
        for piece, (_, ir) in zip(irreps.slices(), irreps):
            operand[:, piece] *= sqrt(v[ir.l])
    z = product(x, y).detach()
    for piece, (_, ir) in zip(product.irreps_out.slices(), product.irreps_out):
        assert z[:, piece].square().mean() == pytest.approx(v[ir.l], rel=0.05)


# ---- equivariance ----


@pytest.mark.parametrize("backend", BACKENDS)
def test_equivariant_by_e3nns_own_helper(backend, double):
    from e3nn.util.test import assert_equivariant

    torch.manual_seed(0)
    product = GauntTensorProduct("4x0e+4x1o+4x2e", "4x1o+4x3o", backend=backend, dtype=torch.float64)
    torch.nn.init.normal_(product.weight)
    assert_equivariant(product, tolerance=1e-8)
    conv = GauntConv("4x0e+4x1o", 2, internal_weights=True)
    assert_equivariant(conv, irreps_in=[conv.irreps_in1, "1o"], irreps_out=[conv.irreps_out], tolerance=1e-8)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_rotations_and_reflections(dtype, tolerance, generator):
    irreps = up_to(4, 2)
    product = GauntTensorProduct(irreps, irreps, 4, dtype=dtype)
    x, y = (draw(irreps, 10, generator=generator, dtype=dtype) for _ in range(2))
    turn = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))[0]
    z = product(x, y).detach()
    for R in (turn, -turn):
        D = representation(R, irreps).to(dtype)
        assert (product(x @ D.mT, y @ D.mT) - z @ D.mT).abs().max() < tolerance * z.abs().max()


def representation(R, irreps):
    """How coefficients turn with the sphere, by exact integration: e3nn's matrices are not exact to 1e-12."""
    grid = sphere.half_sphere(2 * irreps.lmax)
    r, weight = torch.from_numpy(grid.points), torch.from_numpy(grid.weight)
    blocks = []
    for mul, ir in irreps:
        turned, fixed = (o3.spherical_harmonics(ir.l, v, True, normalization="integral") for v in (r @ R.mT, r))
        blocks += [turned.mT @ (weight[:, None] * fixed)] * mul
    return torch.block_diag(*blocks)


def test_no_product_tells_a_mirror_image(generator):
    """Invariants of any number of vectors are those of their mirror images: the price of symmetric paths only."""
    r = directions(5, generator)
    mirrored = r * torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)
    density = lambda v: o3.spherical_harmonics(up_to(3), v, True).cumsum(0)[[1, 3, 4]].flatten()  # noqa: E731
    irreps = "1x0e+1x1o+1x2e+1x3o"
    for nu in (2, 3, 4):
        a, b = (gaunt_power(density(v).view(3, -1), nu, irreps, "0e") for v in (r, mirrored))
        torch.testing.assert_close(a, b)


# ---- powers ----


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_power_is_repeated_product(normalization, generator):
    x = draw(up_to(2, 3), 5, generator=generator)
    options = PLAIN | {"normalization": normalization}
    square = GauntTensorProduct(up_to(2, 3), up_to(2, 3), **options)
    cube = GauntTensorProduct(up_to(4, 3), up_to(2, 3), **options)
    power = lambda nu, out=None: gaunt_power(x, nu, up_to(2, 3), out, normalization=normalization)  # noqa: E731
    torch.testing.assert_close(power(1), x)
    torch.testing.assert_close(power(2), square(x, x))
    torch.testing.assert_close(power(3), cube(square(x, x), x))
    torch.testing.assert_close(power(3, 1), cube(square(x, x), x)[:, : up_to(1, 3).dim])


def test_power_skips_degrees_that_cannot_arise():
    x = torch.randn(4, 3)
    assert gaunt_power(x, 2, "1o").shape == (4, 6)  # 0e + 2e
    assert gaunt_power(x, 3, "1o").shape == (4, 10)  # 1o + 3o
    torch.testing.assert_close(gaunt_power(x, 2, "1o", "0e")[:, 0], x.square().sum(-1))


# ---- convolution ----


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("weights", ["degree", None])
@pytest.mark.parametrize("lmax", [0, 1, 3])
def test_convolution_is_the_product_with_harmonics(normalization, weights, lmax, generator):
    irreps = o3.Irreps("3x1o+3x0e+3x2e")
    conv = GauntConv(irreps, lmax, 2, normalization=normalization, weights=weights, dtype=torch.float64)
    product = GauntTensorProduct(
        irreps, up_to(lmax), 2, normalization=normalization, weights=weights, internal_weights=False, backend="dense",
        dtype=torch.float64,
    )  # fmt: skip
    x, edges = draw(irreps, 6, generator=generator), 3 * torch.randn(6, 3, generator=generator, dtype=torch.float64)
    edges[0], edges[1] = 0, torch.tensor([0.0, 2.0, 0.0])  # no edge, and one along the polar axis
    w = torch.randn(6, conv.weight_numel, generator=generator, dtype=torch.float64) if weights else None
    harmonics = o3.spherical_harmonics(up_to(lmax), edges, True, normalization=normalization)
    torch.testing.assert_close(conv(x, edges, w), product(x, harmonics, w))


def test_convolution_is_smooth_on_the_polar_axis():
    conv = GauntConv("1x0e+1x1o", 2, dtype=torch.float64)
    x, w = torch.randn(2, 4, dtype=torch.float64), torch.randn(conv.weight_numel, dtype=torch.float64)
    edges = torch.tensor([[0.0, 1.0, 0.0], [0.0, -2.0, 0.0]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda e: conv(x, e, w), edges)
    assert torch.autograd.gradgradcheck(lambda e: conv(x, e, w), edges, fast_mode=True)


# ---- how it behaves as a layer ----


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients(backend, generator):
    options = {"backend": backend, "internal_weights": False, "dtype": torch.float64}
    product = GauntTensorProduct("2x0e+2x1o", "2x1o+2x0e", **options)
    x, y = draw(product.irreps_in1, 2, generator=generator), draw(product.irreps_in2, 1, generator=generator)
    w = torch.randn(product.weight_numel, generator=generator, dtype=torch.float64)
    for t in (x, y, w):
        t.requires_grad_()
    assert torch.autograd.gradcheck(product, (x, y, w))
    assert torch.autograd.gradgradcheck(product, (x, y, w), fast_mode=True)
    assert torch.autograd.gradcheck(lambda x: gaunt_power(x, 3, product.irreps_in1, 1), x)


@pytest.mark.parametrize("backend", BACKENDS)
def test_shapes(backend, generator):
    product = GauntTensorProduct(up_to(2, 2), up_to(2, 2), 2, backend=backend, dtype=torch.float64)
    x, y = draw(up_to(2, 2), 4, 1, generator=generator), draw(up_to(2, 2), 3, generator=generator)
    z = product(x, y)
    assert z.shape == (4, 3, 18)
    torch.testing.assert_close(z[2, 1], product(x[2, 0], y[1]))
    strided = torch.stack([x, x], -1)[..., 0]
    assert not strided.is_contiguous()
    torch.testing.assert_close(product(strided, y), z)
    for empty in ((0,), (3, 0)):
        x = torch.zeros(*empty, 18, dtype=torch.float64, requires_grad=True)
        z = product(x, y[0])
        assert z.shape == (*empty, 18)
        z.sum().backward()
        assert x.grad.shape == x.shape
    assert gaunt_power(torch.zeros(0, 18), 2, up_to(2, 2), 1).shape == (0, 8)
    assert GauntConv(up_to(2, 2), 1, 2)(torch.zeros(0, 18), torch.zeros(0, 3), torch.zeros(0, 16)).shape == (0, 18)
    assert product(torch.full((18,), float("nan"), dtype=torch.float64), y[0]).isnan().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_chunks_do_not_show(backend, generator, monkeypatch):
    product = GauntTensorProduct(up_to(2, 2), up_to(2), 2, backend=backend, internal_weights=False, dtype=torch.float64)
    x, y = draw(up_to(2, 2), 30, generator=generator), draw(up_to(2), 1, generator=generator)
    weights = (
        torch.randn(product.weight_numel, dtype=torch.float64),
        torch.randn(30, product.weight_numel, dtype=torch.float64),
    )

    def results():
        leaf = x.clone().requires_grad_()
        gradients = [torch.autograd.grad(product(leaf, y, w).square().sum(), leaf)[0] for w in weights]
        return [product(x, y, w) for w in weights] + [gaunt_power(x, 2, up_to(2, 2))] + gradients

    whole = results()
    monkeypatch.setattr(backends, "_CHUNK", product.channels * product._product.width * 8 * 3)
    pieces = results()
    torch.testing.assert_close(pieces, whole)


@pytest.mark.parametrize("backend", BACKENDS)
def test_tables_survive_conversion(backend, generator):
    """Made in float32 and converted, a module is exact; tables are not saved, weights are."""
    exact = GauntTensorProduct(up_to(3, 2), up_to(3, 2), 3, backend=backend, dtype=torch.float64)
    converted = GauntTensorProduct(up_to(3, 2), up_to(3, 2), 3, backend=backend).double()
    x, y = draw(up_to(3, 2), 3, generator=generator), draw(up_to(3, 2), 3, generator=generator)
    assert torch.equal(converted(x, y), exact(x, y))
    assert list(exact.state_dict()) == ["weight"]
    torch.nn.init.normal_(exact.weight)
    converted.load_state_dict(exact.state_dict())
    for clone in (converted, copy.deepcopy(exact), pickle.loads(pickle.dumps(exact))):
        assert torch.equal(clone(x, y), exact(x, y))
    single = exact.float()
    torch.testing.assert_close(single(x.float(), y.float()), converted(x, y).float(), rtol=0, atol=1e-5)


def test_exact_to_single_precision_at_degree_32(generator):
    irreps = up_to(32)
    product = GauntTensorProduct(irreps, irreps, 32, weights=None)
    x, y = draw(irreps, 2, generator=generator), draw(irreps, 2, generator=generator)
    single, double = product(x.float(), y.float()), product.double()(x, y)
    assert (single - double).abs().max() < 1e-5 * double.abs().max()


def test_product_of_high_degree(generator):
    x, y, r = draw(up_to(16), generator=generator), draw(up_to(16), generator=generator), directions(10, generator)
    z = GauntTensorProduct(up_to(16), up_to(16), **PLAIN | {"normalization": "integral"})(x, y)
    theta, phi = torch.acos(r[:, 1]).numpy(), torch.atan2(r[:, 0], r[:, 2]).numpy()
    Y = torch.from_numpy(sphere.spherical_harmonics(range(33), theta, phi))
    torch.testing.assert_close(z @ Y, (x @ Y[:289]) * (y @ Y[:289]), rtol=0, atol=1e-11)


def test_autocast_computes_in_the_modules_precision(generator):
    product = GauntTensorProduct(up_to(2, 2), up_to(2, 2), 2)
    x = draw(up_to(2, 2), 3, generator=generator, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        z = product(x.bfloat16(), x)
        cube = gaunt_power(x, 3, up_to(2, 2))
    torch.testing.assert_close(z, product(x.bfloat16().float(), x))
    torch.testing.assert_close(cube, gaunt_power(x, 3, up_to(2, 2)))


def test_vmap(generator):
    product = GauntTensorProduct(up_to(2, 2), up_to(1, 2), dtype=torch.float64)
    x, y = draw(up_to(2, 2), 5, 3, generator=generator), draw(up_to(1, 2), 3, generator=generator)
    torch.testing.assert_close(torch.vmap(product, in_dims=(0, None))(x, y), product(x, y))


@pytest.mark.bad_input  # the compiler cannot look through checks of annotations
@pytest.mark.parametrize("what", ["product", "power", pytest.param("conv", marks=pytest.mark.slow)])
def test_compiles_without_a_break(what, generator, monkeypatch):
    for function in (backends.Sort, backends.Unsort):
        for name in ("forward", "setup_context", "backward"):
            monkeypatch.setattr(function, name, staticmethod(inspect.unwrap(getattr(function, name))))
    x, y = draw(up_to(2, 2), 5, generator=generator), draw("1o", 5, generator=generator)
    if what == "product":
        f = GauntTensorProduct(up_to(2, 2), "1o", dtype=torch.float64)
    elif what == "conv":
        f = GauntConv(up_to(2, 2), 2, internal_weights=True, dtype=torch.float64)
    else:
        f = lambda x, _: gaunt_power(x, 3, "2x0e+2x1o+2x2e")  # noqa: E731
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    x.requires_grad_()
    torch.testing.assert_close(compiled(x, y), f(x, y))
    gradients = [torch.autograd.grad(g(x, y).square().sum(), x)[0] for g in (compiled, f)]
    torch.testing.assert_close(*gradients)


# ---- bad input ----


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "arguments, message",
    [
        (("1e", "1o"), r"irreps_in1 must have parity \(-1\)\^l \(0e, 1o, 2e, ...\), got 1e in '1x1e'"),
        (("0e", "2x0o"), r"irreps_in2 must have parity .* got 0o"),
        (("0e + 0e", "0e"), r"irreps_in1 must have each degree at most once, got '1x0e\+1x0e'"),
        (("2x0e + 1o", "0e"), "irreps_in1 must have one multiplicity, the same for all degrees"),
        (("0x0e", "0e"), "irreps_in1 must have one multiplicity"),
        (("", "0e"), "irreps_in1 must have one multiplicity"),
        (("2x0e", "3x0e"), "irreps_in1 and irreps_in2 must have the same multiplicity, or one of them 1, got 2 and 3"),
        (("vectors", "0e"), "irreps_in1 must be irreps such as '8x0e [+] 8x1o', got 'vectors'"),
        (("1o", "1o", 3), "irreps_out must be a degree from 0 to 2, the largest that arises, got 3"),
        (("1o", "1o", -1), "irreps_out must be a degree from 0 to 2"),
        (("1o", "1o", "1o"), r"irreps_out must hold degrees that arise, \[0, 2\], got 1 in '1x1o'"),
        (("1o", "1o", "1e"), r"irreps_out must have parity .* got 1e in '1x1e': .* use e3nn's TensorProduct"),
        (("4x1o", "4x1o", "2x0e"), "irreps_out must have the inputs' multiplicity 4, got '2x0e'"),
    ],
)
def test_bad_irreps(arguments, message):
    with pytest.raises(ValueError, match=message):
        GauntTensorProduct(*arguments)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "options, message",
    [
        ({"backend": "gpu"}, "backend must be one of 'auto', 'grid', 'fft', 'dense', got 'gpu'"),
        ({"weights": "all"}, "weights must be one of 'degree', 'path', None"),
        ({"weights": "path", "backend": "grid"}, "backend must be 'dense' or 'auto' for weights='path', got 'grid'"),
        ({"normalization": "unit"}, "normalization must be one of 'component', 'norm', 'integral'"),
        ({"path_normalization": "path"}, "path_normalization must be one of 'element', 'none'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        GauntTensorProduct("1o", "1o", **options)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ((torch.zeros(2, 5), X), ValueError, r"x must have 4 entries in the last dimension, got .*\(2, 5\)"),
        ((X, torch.zeros(())), ValueError, r"y must have 4 entries in the last dimension, got shape \(\)"),
        ((X, X.long()), TypeError, "y must have a floating dtype, got torch.int64"),
        ((X * 1j, X), TypeError, "x must have a floating dtype, got torch.complex64"),
        ((torch.zeros(0, 4).int(), torch.zeros(0, 4)), TypeError, "x must have a floating dtype, got torch.int32"),
        (([0.0] * 4, X), TypeError, "x must be a torch.Tensor, got list"),
        ((X.double(), X), ValueError, "x must have the module's dtype torch.float32, got torch.float64"),
        ((X, torch.zeros(2, 4, device="meta")), ValueError, "y must have the module's device cpu, got meta"),
        ((X, torch.zeros(2, 4), torch.zeros(5)), ValueError, "weight must have 7 entries"),
    ],
)  # fmt: skip
def test_bad_tensors(arguments, error, message):
    with pytest.raises(error, match=message):
        GauntTensorProduct("0e+1o", "0e+1o")(*arguments)


@pytest.mark.bad_input
def test_bad_calls():
    x = torch.zeros(2, 4)
    with pytest.raises(ValueError, match="weight must be given where internal_weights=False: 7 numbers"):
        GauntTensorProduct("0e+1o", "0e+1o", internal_weights=False)(x, x)
    with pytest.raises(ValueError, match="nu must be >= 1, got 0"):
        gaunt_power(x, 0, "0e+1o")
    with pytest.raises(ValueError, match=r"irreps_out must hold degrees that arise, \[0, 2\], got 1"):
        gaunt_power(torch.zeros(3), 2, "1o", "1o")
    with pytest.raises(TypeError, match="x must have a floating dtype, got torch.int64"):
        gaunt_power(x.long(), 2, "0e+1o")
    with pytest.raises(ValueError, match="normalization must be one of"):
        gaunt_power(x, 2, "0e+1o", normalization="unit")
    with pytest.raises(ValueError, match="lmax must be >= 0, got -1"):
        GauntConv("0e", -1)
    with pytest.raises(ValueError, match="weights must be one of 'degree', None, got 'path'"):
        GauntConv("0e", 1, weights="path")
    with pytest.raises(ValueError, match="edge_vec must have 3 entries in the last dimension"):
        GauntConv("0e", 1, weights=None)(torch.zeros(2, 1), X)


@pytest.mark.bad_input
def test_without_e3nn(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "e3nn", None)
    with pytest.raises(ImportError, match=r"Gaunt tensor products need e3nn: pip install 'hadamard\[equivariant\]'"):
        GauntTensorProduct("0e", "0e")
