"""Finite differences."""

import torch

from hadamard.operators import Difference
from tests.suites.operators import OperatorSuite


class TestDifference(OperatorSuite):
    def operator(self):
        return Difference((2, 3), (-2, -1))

    def dense(self):
        def d(n):
            matrix = torch.diag(torch.ones(n - 1, dtype=torch.float64), 1) - torch.eye(n, dtype=torch.float64)
            matrix[-1, -1] = 0
            return matrix

        return torch.cat([torch.kron(d(2), torch.eye(3).double()), torch.kron(torch.eye(2).double(), d(3))])
