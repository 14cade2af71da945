"""The conformance suites of convex functions and of projections.

A new function's test says how to build it, on which shape it acts, and how cvxpy writes it::

    class TestMine(ConvexSuite):
        def function(self):
            return Mine(...)

        def cvxpy(self, u):
            return cp.norm1(u), []

A check of a method that the function does not have does not apply, and passes.
"""

from abc import ABC, abstractmethod

import cvxpy as cp
import numpy as np
import torch
from torch import Tensor

from hadamard.proximal import ConvexFunction


class _Vectors:
    shape: tuple[int, ...] = (6,)
    """Shape of one variable; batches of three are tried."""

    dtypes: tuple[torch.dtype, ...] = (torch.float64, torch.complex128)
    tol = 1e-10
    spread = 2.0
    """Scale of the random points: some are to lie inside of the domain and some outside."""

    def random(self, seed: int, dtype: torch.dtype, scale: float | None = None) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return (scale or self.spread) * torch.randn(3, *self.shape, dtype=dtype, generator=generator)

    def dot(self, u: Tensor, v: Tensor) -> Tensor:
        return (u.conj() * v).real.flatten(1).sum(1)

    def square(self, u: Tensor) -> Tensor:
        return self.dot(u, u)

    def points(self):
        return [self.random(seed, dtype, scale) for dtype in self.dtypes for seed, scale in enumerate((0.2, 1.0, 5.0))]


class ConvexSuite(_Vectors, ABC):
    @abstractmethod
    def function(self) -> ConvexFunction:
        """Build it."""

    @abstractmethod
    def cvxpy(self, u: cp.Variable) -> tuple[cp.Expression, list[cp.Constraint]]:
        """Its value and domain on one real variable of this shape."""

    def test_is_a_convex_function(self):
        f = self.function()
        assert isinstance(f, ConvexFunction)
        for x in self.points():
            assert f.value(x).shape == (3,)
            assert not f.value(x).is_complex()

    def test_convex_along_segments(self):
        f = self.function()
        for x in self.points():
            u, v = self._in_domain(x), self._in_domain(x.flip(0) * 0.7)
            assert (f.value(0.3 * u + 0.7 * v) <= 0.3 * f.value(u) + 0.7 * f.value(v) + self.tol).all()

    def test_fenchel_young(self):
        f = self.function()
        if hasattr(f, "conjugate"):
            for x in self.points():
                for s in (x.flip(0), x * 0.1, x * 0):
                    u = self._in_domain(x)
                    assert (f.value(u) + f.conjugate(s) >= self.dot(s, u) - self.tol).all()

    def test_maximiser_attains_the_conjugate(self):
        f = self.function()
        if hasattr(f, "grad_conjugate"):
            for s in [*self.points(), self.points()[0] * 0]:
                x = f.grad_conjugate(s)
                assert x.dtype == s.dtype
                torch.testing.assert_close(f.value(x) + f.conjugate(s), self.dot(s, x), rtol=0, atol=self.tol)
            assert (f.grad_conjugate(s) == 0).all()  # of the maximisers at zero, the one of smallest norm

    def test_maximiser_is_the_gradient_of_the_conjugate(self):
        f = self.function()
        if hasattr(f, "grad_conjugate"):
            for s in self.points():
                s = s.requires_grad_()
                (gradient,) = torch.autograd.grad(f.conjugate(s).sum(), s)
                torch.testing.assert_close(f.grad_conjugate(s.detach()), gradient, rtol=1e-8, atol=1e-8)

    def test_prox_is_optimal(self):
        f = self.function()
        if hasattr(f, "prox"):
            for x in self.points():
                for step in (0.3, 2.0):
                    p = f.prox(x, step)
                    least = step * f.value(p) + self.square(p - x) / 2
                    assert torch.isfinite(least).all()
                    for seed in range(
                        4
                    ):  # the objective is 1-strongly convex, so that it grows from p by |u - p|^2 / 2
                        for near in (1e-3, 1.0):
                            u = self._in_domain(p + near * self.random(seed, x.dtype))
                            other = step * f.value(u) + self.square(u - x) / 2
                            assert (other >= least + self.square(u - p) / 2 - self.tol).all()

    def test_moreau(self):
        f = self.function()
        if hasattr(f, "prox") and hasattr(f, "conjugate"):
            for x in self.points():
                for step in (0.3, 2.0):  # (x - p) / step is a subgradient of f at p, and p one of the conjugate there
                    p = f.prox(x, step)
                    s = (x - p) / step
                    torch.testing.assert_close(f.value(p) + f.conjugate(s), self.dot(s, p), rtol=0, atol=10 * self.tol)

    def test_prox_against_cvxpy(self):
        f = self.function()
        if hasattr(f, "prox"):
            for scale in (0.5, 3.0):
                x = self.random(7, torch.float64, scale)
                u = cp.Variable(self.shape)
                value, domain = self.cvxpy(u)
                cp.Problem(cp.Minimize(0.7 * value + cp.sum_squares(u - x[0].numpy()) / 2), domain).solve("CLARABEL")
                np.testing.assert_allclose(f.prox(x, 0.7)[0].numpy(), u.value, atol=2e-4)

    def test_projection(self):
        f = self.function()
        if hasattr(f, "project"):
            for x in self.points():
                p = f.project(x)
                assert torch.isfinite(f.value(p)).all()
                torch.testing.assert_close(f.project(p), p, rtol=0, atol=self.tol)
                for seed in range(4):
                    u = f.project(self.random(seed, x.dtype))
                    assert (self.dot(x - p, u - p) <= self.tol * (1 + self.square(x))).all()

    def test_gradient_of_prox(self):
        f = self.function()
        if hasattr(f, "prox"):
            for dtype in self.dtypes:
                x = self.random(11, dtype).requires_grad_()
                assert torch.autograd.gradcheck(lambda x: f.prox(x, 0.3), (x,))

    def test_single_precision(self):
        f = self.function()
        x = self.random(5, torch.float64)
        for method in ("value", "conjugate", "grad_conjugate", "project"):
            if hasattr(f, method):
                got, want = getattr(f, method)(x.float()), getattr(f, method)(x)
                assert got.dtype == torch.float32
                torch.testing.assert_close(got, want.float(), rtol=1e-4, atol=1e-4)

    def _in_domain(self, x: Tensor) -> Tensor:
        f = self.function()
        return f.project(x) if hasattr(f, "project") else x


class ProjectionSuite(_Vectors, ABC):
    """Projections on convex sets."""

    dtypes = (torch.float64,)

    @abstractmethod
    def project(self, x: Tensor) -> Tensor:
        """Project a batch."""

    @abstractmethod
    def distance(self, x: Tensor) -> Tensor:
        """By how much each of a batch violates the definition of the set; 0 inside."""

    @abstractmethod
    def cvxpy(self, u: cp.Variable) -> list[cp.Constraint]:
        """The set, as constraints on one real variable of this shape."""

    def test_lands_in_the_set(self):
        for x in self.points():
            assert (self.distance(self.project(x)) <= self.tol * (1 + x.abs().max())).all()

    def test_idempotent(self):
        for x in self.points():
            p = self.project(x)
            torch.testing.assert_close(self.project(p), p, rtol=0, atol=self.tol)

    def test_is_nearest(self):
        for x in self.points():
            p = self.project(x)
            for seed in range(6):
                u = self.project(self.random(seed, x.dtype))
                assert (self.dot(x - p, u - p) <= self.tol * (1 + self.square(x))).all()

    def test_against_cvxpy(self):
        for scale in (0.5, 3.0):
            x = self.random(7, torch.float64, scale)
            u = cp.Variable(self.shape)
            cp.Problem(cp.Minimize(cp.sum_squares(u - x[0].numpy())), self.cvxpy(u)).solve("CLARABEL")
            np.testing.assert_allclose(self.project(x)[0].numpy(), u.value, atol=2e-4)

    def test_gradient(self):
        for dtype in self.dtypes:
            for scale in (0.3, 2.0):
                x = self.random(11, dtype, scale).requires_grad_()
                assert torch.autograd.gradcheck(self.project, (x,))

    def test_batch_by_batch(self):
        for x in self.points():
            torch.testing.assert_close(self.project(x)[1:2], self.project(x[1:2]), rtol=0, atol=self.tol)

    def test_single_precision(self):
        x = self.random(5, torch.float64)
        got = self.project(x.float())
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, self.project(x).float(), rtol=1e-4, atol=1e-5)
