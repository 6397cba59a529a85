"""Stochastic depth (Huang et al., Deep Networks with Stochastic Depth, ECCV 2016)."""

from torch import Tensor, nn


class StochasticDepth(nn.Module):
    """Leaves a residual branch out, for each sample by itself, while training.

    Args:
        rate: probability of leaving the branch out, in ``[0, 1)``. What is kept is divided by ``1 - rate``.
    """

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        """Drop whole samples of ``(B, ...)``."""
        if not self.training or self.rate == 0.0:
            return branch
        keep = branch.new_empty((branch.shape[0],) + (1,) * (branch.ndim - 1)).bernoulli_(1 - self.rate)
        return branch * (keep / (1 - self.rate))

    def extra_repr(self) -> str:
        """Show the rate where the model is printed."""
        return f"rate={self.rate:.3g}"
