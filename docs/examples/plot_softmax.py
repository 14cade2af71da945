"""
A softmax that reads twice
==========================

The textbook's softmax goes over a row three times: for the maximum, for the sum and for the quotient.
:func:`hadamard.transforms.softmax` keeps each exponential as a mantissa and an exponent, needs no maximum, and goes
over it twice. The answer is the same.
"""

import matplotlib.pyplot as plt
import torch

from hadamard.transforms import softmax

generator = torch.Generator().manual_seed(0)
sharpness = torch.tensor([1.0, 2.0, 3.0, 4.0])
scores = sharpness[:, None] * torch.randn(4, 100_000, generator=generator)
exact = torch.softmax(scores.double(), dim=-1)
for name, result in (("two passes", softmax(scores, dim=-1)), ("torch", torch.softmax(scores, dim=-1))):
    print(f"{name:<10}  largest relative error {((result - exact).abs() / exact).max():.1e}")

# %%
# Offsets that overflow a plain ``exp`` do no harm, and what is masked stays zero.

shifted = scores + 1e4
shifted[:, ::2] = -torch.inf
print(softmax(shifted, dim=-1).sum(-1), softmax(shifted, dim=-1)[:, ::2].max())

# %%
# The sharper a row, the fewer entries make up nine tenths of it.

share = softmax(scores, dim=-1).sort(descending=True).values.cumsum(-1)
figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
for row, factor in zip(share, sharpness):
    axis.semilogx(range(1, len(row) + 1), row, label=f"scores times {factor:g}")
axis.axhline(0.9, color="0.6", linestyle=":")
axis.set(xlabel="largest entries", ylabel="their share")
axis.legend(frameon=False)
