"""Small transport problems that the tests share."""

import torch


def cloud(n=12, m=9, *, seed=0, batch=(), dtype=torch.float64):
    """Histograms that are not uniform, and squared distances between random points of the unit square."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.rand(*batch, n, generator=generator, dtype=torch.float64) + 0.2
    b = torch.rand(*batch, m, generator=generator, dtype=torch.float64) + 0.2
    x = torch.rand(*batch, n, 2, generator=generator, dtype=torch.float64)
    y = torch.rand(*batch, m, 2, generator=generator, dtype=torch.float64)
    M = (x[..., :, None, :] - y[..., None, :, :]).square().sum(-1)
    return tuple(t.to(dtype) for t in (a / a.sum(-1, keepdim=True), b / b.sum(-1, keepdim=True), M))


def assignment(n=60, *, seed=0):
    """Random costs between two uniform histograms."""
    M = torch.rand(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    weights = torch.full((n,), 1 / n, dtype=torch.float64)
    return weights, weights.clone(), M


def objective(plan, M, reg):
    """Cost plus entropy of a plan."""
    return (plan * torch.where(plan > 0, M, 0)).sum() + reg * torch.special.xlogy(plan, plan).sum()


def violation(found, a, b):
    """How far the sums of a plan are from the histograms, in the 1-norm; the worst of a batch."""
    return float(((found.plan.sum(-1) - a).abs().sum(-1) + (found.plan.sum(-2) - b).abs().sum(-1)).max())


def unrolled(a, b, M, reg, steps=400):
    """Plan and potentials by Sinkhorn's iteration written out, for autograd to follow."""
    f, g = torch.zeros_like(a), torch.zeros_like(b)
    for _ in range(steps):
        f = reg * (a.log() - torch.logsumexp((g[None, :] - M) / reg, 1))
        g = reg * (b.log() - torch.logsumexp((f[:, None] - M) / reg, 0))
    shift = (f.sum() - g.sum()) / (len(f) + len(g))
    f, g = f - shift, g + shift
    return ((f[:, None] + g[None, :] - M) / reg).exp(), f, g
