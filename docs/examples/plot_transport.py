"""
Transport to machine precision
==============================

Sinkhorn's iterations get slow where the regularisation gets small. :func:`hadamard.transport.sinkhorn_newton_sparse`
takes a few of them to find out which entries of the plan matter, and then Newton steps on those entries only.
"""

import matplotlib.pyplot as plt
import torch

from hadamard.transport import sinkhorn_newton_sparse

generator = torch.Generator().manual_seed(0)
angle = 2 * torch.pi * torch.rand(200, generator=generator, dtype=torch.float64)
ring = torch.stack([angle.cos(), angle.sin()], dim=1)
cloud = 0.35 * torch.randn(200, 2, generator=generator, dtype=torch.float64)
weights = torch.full((200,), 1 / 200, dtype=torch.float64)
cost = torch.cdist(ring, cloud).square()

# %%
# The arguments are POT's; the result carries the plan, the potentials and whether it converged.

result = sinkhorn_newton_sparse(weights, weights, cost, reg=2e-3, tol=1e-10)
print(f"{result.iterations} iterations, error of the marginals {result.residual:.1e}")

# %%
# At this regularisation a point sends its mass to a dozen of the two hundred others.

print(f"{(result.plan > 1e-6).sum(1).double().mean():.1f} partners a point")
figure, axis = plt.subplots(figsize=(5.5, 5.5), layout="constrained")
for i, j in (result.plan > 1e-4).nonzero():
    axis.plot(*zip(ring[i], cloud[j]), color="0.75", linewidth=200 * float(result.plan[i, j]), zorder=0)
axis.scatter(*ring.T, s=12, color="#0b5394", label="from")
axis.scatter(*cloud.T, s=12, color="#d55e00", label="to")
axis.set(aspect="equal", xticks=[], yticks=[])
axis.legend(loc="upper right", frameon=False)
