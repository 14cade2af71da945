"""PTD and diagonal state-space layers: HiPPO from its integrals, brute-force sums, the recurrence, SciPy, gradients."""

import copy
import pickle
import subprocess
import sys

import numpy as np
import pytest
import scipy.linalg
import scipy.signal
import torch
from numpy.polynomial import legendre
from scipy.special import eval_legendre
from torch.autograd import gradcheck, gradgradcheck

from hadamard.layers import DiagonalSSM, conjugate_half, hippo, ptd, transfer
from hadamard.layers import _recurrence as recurrence
from hadamard.layers._recurrence import exponential_sum, hold, linear_scan
from hadamard.layers._ssm_start import INITS
from hadamard.layers.ptd import normal_part

D, C128 = torch.float64, torch.complex128


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(*shape, dtype=D, seed=1):
    return torch.randn(*shape, dtype=dtype, generator=seeded(seed))


# -- HiPPO --


def test_legs_state_is_a_legendre_expansion_of_the_past():
    A, B = hippo(6)
    for s in (0.0, 0.3, 2.0):
        wanted = [np.sqrt(2 * k + 1) * eval_legendre(k, 2 * np.exp(-s) - 1) * np.exp(-s) for k in range(6)]
        np.testing.assert_allclose((scipy.linalg.expm(s * A.numpy()) @ B.numpy())[:, 0], wanted, atol=1e-12)


def test_legt_from_its_integrals():
    """x' = (integral of phi_k' phi_j - phi_k(1) phi_j(1)) x + phi(0) u with phi_k(s) = sqrt(2k+1) P_k(1 - 2s)."""
    n, (x, w) = 6, np.polynomial.legendre.leggauss(12)

    def phi(k, derivative=0):
        c = np.sqrt(2 * k + 1) * np.eye(n)[k]
        return legendre.legval(x, legendre.legder(c)) * -2 if derivative else legendre.legval(x, c)  # x stands for 1-2s

    inner = np.array([[np.sum(w / 2 * phi(k, 1) * phi(j)) for j in range(n)] for k in range(n)])
    end = np.array([np.sqrt(2 * k + 1) * (-1) ** k for k in range(n)])
    A, B = hippo(n, "legt")
    np.testing.assert_allclose(A.numpy(), inner - np.outer(end, end), atol=1e-12)
    np.testing.assert_allclose(B[:, 0].numpy(), np.abs(end))


def test_fout_holds_the_fourier_series_of_a_periodic_input():
    """Its state is then the coefficients of the past window, and moves with them."""
    A, B = hippo(5, "fout")
    rotation = A + B @ B.T / 2
    wanted = torch.zeros(5, 5, dtype=D)
    for j in (1, 2):
        wanted[2 * j - 1, 2 * j], wanted[2 * j, 2 * j - 1] = -2 * torch.pi * j, 2 * torch.pi * j
    torch.testing.assert_close(rotation, wanted)
    # u = cos(2 pi t) is in the span: x' = A x + B u has x = (0, cos, sin, 0, 0) / sqrt 2 * (phi of t) as a solution
    t = 0.37
    c, s = np.cos(2 * np.pi * t), np.sin(2 * np.pi * t)
    x = torch.tensor([0, c, s, 0, 0], dtype=D) / 2**0.5
    velocity = 2 * np.pi * torch.tensor([0, -s, c, 0, 0], dtype=D) / 2**0.5
    torch.testing.assert_close(A @ x + B[:, 0] * c, velocity)


def test_legs_spectrum_and_normal_part():
    A, B = hippo(7)
    assert torch.equal(A.diagonal(), -torch.arange(1.0, 8.0, dtype=D))
    S = A + B @ B.T / 2
    torch.testing.assert_close(S + S.T, -torch.eye(7, dtype=D))
    lam, V = normal_part(7)
    torch.testing.assert_close((V * lam) @ V.mH, S.to(C128), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(V.mH @ V, torch.eye(7, dtype=C128), rtol=1e-12, atol=1e-12)
    assert (lam.imag == 0).sum() == 1


# -- ptd --


def test_by_hand():
    one = torch.ones(1, 1, dtype=D)
    d = ptd(-one, 0.0)
    assert (d.lam.item(), d.cond, d.backward_error) == (-1, 1.0, 0.0)
    omega = torch.tensor([0.0, 2.0], dtype=D)
    torch.testing.assert_close(transfer(d.lam, d.inputs(one), d.outputs(one), omega).flatten(), 1 / (1j * omega + 1))
    d = ptd(torch.tensor([[-1.0, 2.0], [-2.0, -1.0]]), 0.0)
    torch.testing.assert_close(d.lam, torch.tensor([-1 + 2j, -1 - 2j], dtype=C128))
    assert d.cond == pytest.approx(1)


@pytest.mark.parametrize("kind", [torch.float64, C128], ids=["real", "complex"])
@pytest.mark.parametrize("optimize", [False, True])
def test_backward_error_is_the_perturbation(kind, optimize):
    A = hippo(16)[0].to(kind)
    d = ptd(A, 0.05, optimize=optimize, generator=seeded())
    assert float(torch.linalg.matrix_norm(d.E, 2)) == pytest.approx(0.05)
    assert d.backward_error == pytest.approx(0.05, rel=1e-8)
    again = d.V @ torch.diag(d.lam) @ torch.linalg.inv(d.V)
    assert float((again - A - d.E).abs().max()) < 1e-10 * d.cond
    assert d.E.dtype == kind
    assert d.cond == pytest.approx(np.linalg.cond(d.V.numpy()))


@pytest.mark.parametrize("n", [8, 17, 32])
def test_optimised_perturbation_halves_the_condition_number_at_least(n):
    A = hippo(n)[0]
    random = np.median([ptd(A, 0.1, generator=seeded(i)).cond for i in range(5)])
    assert ptd(A, 0.1, optimize=True, generator=seeded()).cond < random / 2


def test_gamma_trades_condition_for_size():
    A = hippo(16)[0]
    small, large = (ptd(A, 0.1, gamma=gamma, generator=seeded()) for gamma in (1e4, 1e2))
    assert small.backward_error < large.backward_error
    assert small.cond > large.cond
    fixed = ptd(A, small.backward_error, optimize=True, generator=seeded())
    assert small.cond == pytest.approx(fixed.cond, rel=0.1)


def test_error_of_the_transfer_function_is_first_order():
    """C (s-A)^-1 E (s-A)^-1 B, from a perturbation that is given."""
    A, B = hippo(8)
    C, omega = draw(1, 8), torch.logspace(-1, 2, 30, dtype=D)
    exact = transfer(A, B, C, omega)
    d = ptd(A, 1e-5, optimize=True, generator=seeded())
    found = transfer(d.lam, d.inputs(B), d.outputs(C), omega)
    first = transfer(A, d.E, C, omega) @ torch.linalg.solve(1j * omega[:, None, None] * torch.eye(8) - A, B + 0j)
    torch.testing.assert_close(found - exact, first, rtol=1e-2, atol=1e-9)


def test_transfer_at_zero_and_against_scipy():
    A, B = hippo(5)
    C, E = draw(2, 5), draw(2, 1, seed=3)
    at_zero = transfer(A, B, C, torch.zeros(1, dtype=D), E)[0]
    torch.testing.assert_close(at_zero.real, -C @ torch.linalg.solve(A, B) + E)
    omega = np.array([0.5, 3.0])
    system = scipy.signal.lti(A.numpy(), B.numpy(), C[:1].numpy(), E[:1].numpy())
    wanted = torch.from_numpy(scipy.signal.freqresp(system, omega)[1])
    torch.testing.assert_close(transfer(A, B, C[:1], torch.from_numpy(omega), E[:1]).flatten(), wanted)


@pytest.mark.parametrize("n", [16, 32, 64])
def test_relative_trap(n):
    """Ten per cent of ||A|| destabilises HiPPO: refused, or shrunk."""
    A = hippo(n)[0]
    with pytest.raises(ValueError, match="eps must leave the matrix stable"):
        ptd(A, 0.1, relative=True, generator=seeded())
    d = ptd(A, 0.1, relative=True, unstable="shrink", generator=seeded())
    assert d.lam.real.max() < 0
    assert d.backward_error < 0.1 * float(torch.linalg.matrix_norm(A, 2))
    assert ptd(A, 0.1, relative=True, unstable="ignore", generator=seeded()).lam.real.max() > 0


@pytest.mark.parametrize(("n", "seed"), [(7, 0), (8, 3), (16, 2)])
def test_conjugate_half_is_the_full_sum(n, seed):
    A, B = hippo(n)
    d = ptd(A, 0.01, generator=seeded(seed))
    assert (d.lam.imag == 0).any()
    b, c = d.inputs(B), d.outputs(draw(3, n))
    t = torch.linspace(0, 3, 7, dtype=D)
    full = torch.einsum("pn,nt,nm->tpm", c, torch.exp(d.lam[:, None] * t), b)
    lam, b, c = conjugate_half(d.lam, b, c)
    half = torch.einsum("pn,nt,nm->tpm", c, torch.exp(lam[:, None] * t), b)
    assert float(full.imag.abs().max()) < 1e-9 * float(d.cond)
    torch.testing.assert_close(half.real, full.real, rtol=1e-9, atol=1e-9)


# -- recurrences --


def literal(a, b, reverse):
    a, x, before = a.expand(b.shape), [None] * b.shape[1], torch.zeros_like(b[:, 0])
    for t in reversed(range(b.shape[1])) if reverse else range(b.shape[1]):
        before = x[t] = a[:, t] * before + b[:, t]
    return torch.stack(x, 1)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", [1, 2, 16, 17, 256, 300])
def test_scan_is_the_recurrence(length, reverse):
    b = draw(2, length, 3, dtype=C128)
    for shape in ((1, 1, 3), (2, length, 3), (1, 1, 1), (2, length, 1), (2, 1, 3), (1, length, 3)):
        a = 0.6 * draw(*shape, dtype=C128, seed=2)
        torch.testing.assert_close(linear_scan(a, b, reverse), literal(a, b, reverse), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("reverse", [False, True])
def test_scan_gradients(reverse, monkeypatch):
    monkeypatch.setattr(recurrence, "_RADIX", 3)
    b = draw(2, 10, 2, dtype=C128).requires_grad_()
    for shape in ((1, 1, 2), (2, 10, 2), (2, 10, 1)):
        a = (0.6 * draw(*shape, dtype=C128, seed=2)).requires_grad_()
        assert gradcheck(lambda a, b: linear_scan(a, b, reverse), (a, b))
        assert gradgradcheck(lambda a, b: linear_scan(a, b, reverse), (a, b), fast_mode=True)


def test_exponential_sum():
    w, z = draw(2, 3, dtype=C128), 0.1 * draw(2, 3, dtype=C128, seed=2)
    for length in (1, 2, 7, 16, 17):
        wanted = (w[..., None] * torch.exp(z[..., None] * torch.arange(length))).sum(-2).real
        torch.testing.assert_close(exponential_sum(w, z, length), wanted)


def test_hold_at_zero_is_one():
    z = torch.tensor([0, 1e-9, -1e-5 + 1e-5j, -1e-4, 2e-4j, -0.5 + 3j], dtype=C128, requires_grad=True)
    wanted = [1, *((np.expm1(complex(x)) / complex(x)) for x in z.detach()[1:])]
    torch.testing.assert_close(hold(z.detach()), torch.tensor(wanted, dtype=C128), rtol=1e-12, atol=1e-12)
    assert gradcheck(hold, (z,))


# -- the layer --

every = pytest.mark.parametrize(
    ("init", "mimo", "n"), [(i, m, n) for i in INITS for m, n in ((False, 8), (True, 8), (False, 7), (True, 1))]
)


def make(h=3, n=8, **options):
    return DiagonalSSM(h, n, dtype=D, generator=seeded(), **options)


def brute(layer, u):
    """The sum over the kernel, tap by tap."""
    K = layer.kernel(u.shape[1])
    K = K if layer.bidirectional else K[None]
    K = K if layer.mimo else torch.diag_embed(K.mT).permute(0, 2, 3, 1)
    y = u * layer.D
    for t in range(u.shape[1]):
        for s in range(u.shape[1]):
            if s <= t:
                y[:, t] += u[:, s] @ K[0, :, :, t - s].T
            if s >= t and layer.bidirectional:
                y[:, t] += u[:, s] @ K[1, :, :, s - t].T
    return y


@every
@pytest.mark.parametrize("bidirectional", [False, True])
@torch.no_grad()
def test_convolution_scan_and_sum_agree(init, mimo, n, bidirectional):
    layer, u = make(n=n, init=init, mimo=mimo, bidirectional=bidirectional), draw(2, 20, 3)
    wanted = brute(layer, u)
    for layer.mode in ("conv", "scan"):
        torch.testing.assert_close(layer(u), wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("mimo", [False, True])
@torch.no_grad()
def test_kernel_and_output_of_the_dense_system_by_scipy(mimo):
    """The layer with PTD is the dense system A + E, discretised by SciPy's zero-order hold and run by dlsim."""
    from hadamard.layers._ssm_start import _perturbed_hippo

    h, n = 2, 8
    layer = make(h, n, mimo=mimo, dt_min=0.05, dt_max=0.05)
    E = _perturbed_hippo(n, 0.1).E
    A, B = hippo(n)
    g = seeded()
    if mimo:
        B = h**-0.5 * torch.randn(n, h, dtype=D, generator=g)
        C = n**-0.5 * torch.randn(h, n, dtype=D, generator=g)
    else:
        C = torch.randn(h, n, dtype=D, generator=g)
    u = draw(1, 40, h)
    for i in range(h):
        system = ((A + E).numpy(), B.numpy(), C[i : i + 1].numpy(), np.zeros((1, B.shape[1])))
        Ad, Bd, Cd, *_ = scipy.signal.cont2discrete(system, 0.05)
        # ours sees the current sample: y[l] = C x[l + 1] in SciPy's indexing
        system = scipy.signal.dlti(Ad, Bd, Cd @ Ad, Cd @ Bd, dt=0.05)
        wanted = scipy.signal.dlsim(system, u[0].numpy() if mimo else u[0, :, i : i + 1].numpy())[1][:, 0]
        found = (layer(u) - layer.D * u)[0, :, i]
        np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(("init", "tolerance"), [("s4d-legs", 1e-10), ("ptd", 0.05)])
@torch.no_grad()
def test_gain_at_zero_is_that_of_hippo(init, tolerance):
    """A^-1 B = -e_0, so HiPPO's is C[0]; S4D, with half of B, has exactly this one too, PTD to order eps."""
    layer = make(4, 8, init=init, dt_min=0.1, dt_max=0.1)
    C = torch.randn(4, 8, dtype=D, generator=seeded())
    torch.testing.assert_close(layer.kernel(1000).sum(1), C[:, 0], rtol=0, atol=tolerance)


@every
@torch.no_grad()
def test_stepping_and_handing_over_the_state(init, mimo, n):
    layer, u = make(n=n, init=init, mimo=mimo), draw(2, 12, 3)
    wanted, end = layer(u, return_state=True)
    torch.testing.assert_close(wanted, layer(u), rtol=1e-10, atol=1e-10)
    y, state = layer(u[:, :5], state=layer.initial_state(2), return_state=True)
    outputs = [y]
    for t in range(5, 12):
        y, state = layer.step(u[:, t], state)
        outputs.append(y[:, None])
    torch.testing.assert_close(torch.cat(outputs, 1), wanted, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(state, end, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_scan_in_pieces(monkeypatch):
    layer, u = make(mode="scan"), draw(2, 40, 3)
    whole = layer(u)
    monkeypatch.setattr("hadamard.layers.ptd_ssm._STATES", 200)
    torch.testing.assert_close(layer(u), whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mimo", [False, True])
@torch.no_grad()
def test_variable_step(mimo):
    """Holding an input for k samples is one step k times as long; a step of 0 changes nothing; numbers broadcast."""
    layer, u = make(mimo=mimo), draw(2, 6, 3)
    layer.D.zero_()
    repeats = torch.tensor([1, 3, 2, 1, 4, 1])
    fine = layer(u.repeat_interleave(repeats, 1))[:, repeats.cumsum(0) - 1]
    torch.testing.assert_close(layer(u, repeats.to(D).expand(2, -1)), fine, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(layer(u, 2.0), layer(u, torch.full((2,), 2.0, dtype=D)), rtol=1e-10, atol=1e-10)
    slow = torch.tensor([1.0, 2.0], dtype=D)
    torch.testing.assert_close(layer(u, slow)[1:], layer(u[1:], 2.0), rtol=1e-10, atol=1e-10)
    _, state = layer(u, return_state=True)
    torch.testing.assert_close(layer.step(u[:, 0], state, torch.zeros(2, dtype=D))[1], state)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("mode", ["conv", "scan"])
@pytest.mark.parametrize("mimo", [False, True])
@torch.no_grad()
def test_lengths_are_sequences_of_their_own(mode, mimo, bidirectional):
    layer, u, lengths = make(mimo=mimo, bidirectional=bidirectional, mode=mode), draw(3, 9, 3), torch.tensor([9, 4, 0])
    y = layer(u, lengths=lengths)
    torch.testing.assert_close(y[:1], layer(u[:1]), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(y[1:2, :4], layer(u[1:2, :4]), rtol=1e-10, atol=1e-10)
    assert not y[1, 4:].any()
    assert not y[2].any()
    if mode == "scan" and not bidirectional:
        _, state = layer(u, lengths=lengths, return_state=True)
        torch.testing.assert_close(state[1:2], layer(u[1:2, :4], return_state=True)[1], rtol=1e-10, atol=1e-10)
        assert not state[2].any()


@pytest.mark.parametrize("mode", ["conv", "scan"])
@pytest.mark.parametrize("mimo", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_gradients(bidirectional, mimo, mode):
    layer = make(2, 3, mode=mode, dt_min=0.1, dt_max=0.5, mimo=mimo, bidirectional=bidirectional)
    u = draw(1, 5, 2).requires_grad_()
    names, values = zip(*layer.named_parameters())

    def call(u, *values):
        return torch.func.functional_call(layer, dict(zip(names, values)), (u,))

    assert gradcheck(call, (u, *values))


def test_gradient_of_a_varying_step_and_of_the_state():
    layer, u = make(2, 3), draw(1, 4, 2)
    scale = (0.5 + torch.rand(1, 4, dtype=D, generator=seeded())).requires_grad_()
    _, state = layer(u, return_state=True)
    state = state.detach().requires_grad_()
    assert gradcheck(lambda s, x: layer(u, s, state=x), (scale, state))


@torch.no_grad()
def test_cached_spectrum_follows_the_parameters():
    layer, u = make().eval(), draw(2, 10, 3)
    first = layer(u)
    assert layer._spectra is not None
    assert torch.equal(layer(u), first)
    layer.C.data.mul_(2.0)  # leaves no trace in the version counter
    assert not torch.allclose(layer(u), first)
    torch.testing.assert_close(layer(u), brute(layer, u), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(layer(u[:, :7]), brute(layer, u[:, :7]), rtol=1e-10, atol=1e-10)
    layer.train()
    assert layer._spectra is None


def test_state_dict_pickle_and_copy():
    layer, u = make().eval(), draw(2, 10, 3)
    other = DiagonalSSM(3, 8, dtype=D, generator=seeded(5))
    other.load_state_dict(layer.state_dict())
    with torch.no_grad():
        y = layer(u)
        for again in (other, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            torch.testing.assert_close(again(u), y)
    assert {p.dtype for p in layer.half().parameters()} == {torch.float16}


@pytest.mark.parametrize("n", [1, 2, 15, 16, 33])
def test_number_of_modes_is_fixed(n):
    assert make(2, n).log_A_real.shape == (2, n // 2 + 1)
    assert make(2, n, init="s4d-legs").log_A_real.shape == (2, (n + 1) // 2)


def test_blocks_repeat_the_modes():
    layer = make(3, 12, mimo=True, blocks=3)
    assert torch.equal(layer.A_imag.view(3, -1)[0], layer.A_imag.view(3, -1)[2])
    assert layer.kernel(4).shape == (3, 3, 4)


@pytest.mark.parametrize("mimo", [False, True])
def test_float32_and_half(mimo):
    layer, u = make(4, 64, mimo=mimo), draw(2, 500, 4)
    with torch.no_grad():
        exact, layer = layer(u), layer.float()
        for mode, tolerance in (("conv", 1e-3), ("scan", 1e-3)):
            layer.mode = mode
            y = layer(u.float())
            assert y.dtype == torch.float32
            assert (y - exact).abs().max() < tolerance * exact.abs().max()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(layer(u.float()), y)
            assert layer(u.bfloat16()).dtype == torch.bfloat16
        assert layer.half()(u.half()).dtype == torch.float16


COMPILE = """
import torch
from hadamard.layers import DiagonalSSM
for mimo in (False, True):
    for mode in ("conv", "scan"):
        layer = DiagonalSSM(3, 8, mimo=mimo, mode=mode, generator=torch.Generator().manual_seed(0))
        u, grads = torch.randn(2, 40, 3, generator=torch.Generator().manual_seed(1)), []
        compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
        for call in (layer, compiled):
            layer.zero_grad()
            call(u).square().sum().backward()
            grads.append([p.grad.clone() for p in layer.parameters()])
        torch.testing.assert_close(compiled(u), layer(u), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-3)
"""


def test_compile():
    """Alone, since the compiler cannot look through the wrappers that check annotations."""
    done = subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_generator_and_global_state():
    before = torch.get_rng_state()
    a, b = (DiagonalSSM(3, 8, init=i, generator=seeded(4)) for i in ("ptd", "ptd"))
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters()))
    assert torch.equal(torch.get_rng_state(), before)


def test_dynamics_are_the_slow_parameters():
    layer = make()
    assert [tuple(p.shape) for p in layer.dynamics()] == [(3, 5), (3, 5), (3, 5, 2), (3,)]


# -- bad input --

A3 = -torch.eye(3)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ptd(torch.ones(2, 3)), r"A must be square, got shape \(2, 3\)"),
        (lambda: ptd(torch.full((2, 2), float("nan"))), "A must be finite"),
        (lambda: ptd(A3, -1.0), "eps must be >= 0"),
        (lambda: ptd(A3, float("nan")), "eps must be >= 0"),
        (lambda: ptd(A3, 0.1, gamma=0.0), "gamma must be > 0, got 0.0"),
        (lambda: ptd(A3, 0.0, gamma=1.0), "eps must be > 0"),
        (lambda: ptd(A3, unstable="clip"), "unstable must be one of"),
        (lambda: ptd(hippo(32)[0], 0.0), r"double precision can tell apart, got cond\(V\) = "),
        (lambda: ptd(torch.tensor([[-1.0, 1.0], [0.0, -1.0]]), 0.0), r"got cond\(V\)"),
        (lambda: ptd(torch.eye(2)), "eps must leave the matrix stable"),
        (lambda: ptd(torch.eye(2), unstable="shrink"), "eps must leave the matrix stable"),
        (lambda: hippo(0), "n must be >= 1, got 0"),
        (lambda: hippo(4, "fout"), "n must be odd for kind='fout'"),
        (lambda: hippo(4, "lagt"), "kind must be one of"),
        (lambda: transfer(A3, torch.ones(2, 1), torch.ones(1, 3), torch.ones(2)), "B must have shape"),
        (lambda: conjugate_half(torch.tensor([1j]), *[torch.ones(1, 1) + 0j] * 2), "lam must come in conjugate pairs"),
        (lambda: DiagonalSSM(0), "d_model must be >= 1"),
        (lambda: DiagonalSSM(2, 0), "d_state must be >= 1"),
        (lambda: DiagonalSSM(2, init="s4"), "init must be one of 'ptd'"),
        (lambda: DiagonalSSM(2, mode="fft"), "mode must be one of"),
        (lambda: DiagonalSSM(2, dt_min=0.0), "dt_min must be > 0"),
        (lambda: DiagonalSSM(2, dt_min=0.2), "dt_max must be >= 0.2"),
        (lambda: DiagonalSSM(2, eps=0.0), "eps must be > 0"),
        (lambda: DiagonalSSM(2, 8, eps=50.0), "eps must leave the matrix stable"),
        (lambda: DiagonalSSM(2, 8, blocks=2), "blocks must divide d_state=8, and be 1 without mimo"),
        (lambda: make()(draw(2, 0, 3)), "u must not be empty"),
        (lambda: make()(draw(2, 5, 4)), r"u must have shape \(..., \*, \*, 3\)"),
        (lambda: make()(draw(2, 3)), "u must have 3 dimension"),
        (lambda: make()(torch.full((1, 2, 3), float("inf"), dtype=D)), "u must be finite"),
        (lambda: make()(draw(2, 5, 3), -1.0), "step_scale must be >= 0"),
        (lambda: make()(draw(2, 5, 3), -torch.ones(2, 5, dtype=D)), "step_scale must be >= 0"),
        (lambda: make()(draw(2, 5, 3), torch.ones(5, dtype=D)), r"step_scale must have shape \(B,\) or \(B, L\)"),
        (lambda: make()(draw(2, 5, 3), lengths=torch.tensor([1, 6])), "lengths must be <= 5|lengths must be >= 0"),
        (lambda: make()(draw(2, 5, 3), state=draw(2, 3, 4, dtype=C128)), "state must have shape"),
        (lambda: make(mode="conv")(draw(2, 5, 3), return_state=True), "mode must be 'scan' or 'auto'"),
        (lambda: make(bidirectional=True)(draw(2, 5, 3), return_state=True), "bidirectional layer"),
        (lambda: make(bidirectional=True).step(draw(2, 3)), "bidirectional layers have no step"),
        (lambda: make().kernel(0), "length must be >= 1"),
    ],
)
def test_bad_values(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ptd([[1.0]]), "A must be a torch.Tensor, got list"),
        (lambda: ptd(torch.ones(2, 2, dtype=torch.int64)), "A must have a floating or complex dtype"),
        (lambda: make()(draw(2, 5, 3, dtype=C128)), "u must have a floating dtype"),
        (lambda: make()(draw(2, 5, 3).float()), "u must have the layer's dtype torch.float64"),
        (lambda: make()(draw(2, 5, 3), state=draw(2, 3, 5)), "state must have a complex dtype"),
    ],
)
def test_bad_types(call, message):
    with pytest.raises(TypeError, match=message):
        call()
