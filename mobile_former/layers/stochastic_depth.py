"""Stochastic depth (Huang et al., Deep Networks with Stochastic Depth, ECCV 2016)."""

from torch import Tensor, nn


class StochasticDepth(nn.Module):
    """Stochastic depth: in training, drops a residual branch at random, for each sample independently.

    If the branch of a sample is kept, its values are divided by ``1 - rate``.

    Args:
        rate: probability of dropping the branch, in ``[0, 1)``.
    """

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        """Set the residual branch ``(B, ...)`` of randomly chosen samples to zero in training mode.

        For the other samples, the branch is divided by ``1 - rate``. In evaluation mode, it is returned unchanged.
        """
        if not self.training or self.rate == 0.0:
            return branch
        keep = branch.new_empty((branch.shape[0],) + (1,) * (branch.ndim - 1)).bernoulli_(1 - self.rate)
        return branch * (keep / (1 - self.rate))

    def extra_repr(self) -> str:
        """Return the rate as text. ``print(model)`` shows this text."""
        return f"rate={self.rate:.3g}"
