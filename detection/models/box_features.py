"""Features of a map inside the boxes of object queries."""

from torch import Tensor, nn

GRID = 4  # samples of a box in each dimension


class BoxFeatures(nn.Module):
    """Module that samples a feature map on a grid in each box, and projects the samples of a box to a query.

    Attention gathers features without their positions inside the box. With these samples, a query learns classes and
    box corrections in fewer steps. Like RoIAlign (He et al., Mask R-CNN, ICCV 2017), but computed by two matrix
    products, which all runtimes have.

    Args:
        channels: channels C of the feature map.
        query_dim: dimension d of a query.
    """

    def __init__(self, channels: int, query_dim: int):
        super().__init__()
        self.project = nn.Linear(GRID * GRID * channels, query_dim)
        self.norm = nn.LayerNorm(query_dim)

    def forward(self, x: Tensor, down: Tensor, across: Tensor) -> Tensor:
        """Return the features ``(B, Q, d)`` of the boxes of Q queries.

        Args:
            x: feature map ``(B, C, H, W)``.
            down: weights of the map's rows for the samples ``(B, Q, G, H)``, see
                :func:`detection.boxes.reference_boxes.sampling_weights`.
            across: weights of the map's columns ``(B, Q, G, W)``.
        """
        _, channels, height, width = x.shape
        rows = down.flatten(1, 2) @ x.permute(0, 2, 3, 1).reshape(-1, height, width * channels)
        samples = across[:, :, None] @ rows.unflatten(1, (-1, GRID)).unflatten(3, (width, channels))
        return self.norm(self.project(samples.flatten(2)))  # (B, Q, G, G, C) before
