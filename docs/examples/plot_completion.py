"""
A photograph from a third of its pixels
=======================================

A matrix of low rank is fixed by far fewer entries than it has. :func:`hadamard.learning.complete` finds it by sweeps in
which each regression is solved only roughly, by a few steps of conjugate gradients: the sweeps do not mind, and the
cost of one grows with the rank instead of its square.
"""

import matplotlib.pyplot as plt
import torch

from hadamard.data import photographs
from hadamard.learning import complete

picture = next(iter(photographs("test").values()))
print(picture.shape)

# %%
# Two thirds of the pixels are thrown away.

generator = torch.Generator().manual_seed(0)
seen = torch.rand(picture.shape, generator=generator) < 1 / 3
indices = seen.nonzero().T

# %%
# What is left is fitted by 24 columns on each side, with a little ridge, since no photograph has an exact rank.

result = complete(indices, picture[seen], tuple(picture.shape), rank=24, reg=0.3, max_iter=60, tol=1e-4)
filled = result.to_dense().clamp(0, 1)
error = (filled - picture)[~seen].square().mean()
print(f"{result.iterations} sweeps, {-10 * error.log10():.1f} dB on the pixels that were never seen")

# %%
# Straight edges along rows and columns come back first, since those are what a low rank says best.

figure, axes = plt.subplots(1, 3, figsize=(11, 4), layout="constrained")
for axis, image, title in zip(axes, [picture, picture * seen, filled], ["whole", "a third of it", "filled in"]):
    axis.imshow(image, cmap="gray", vmin=0, vmax=1)
    axis.set(title=title, xticks=[], yticks=[])
