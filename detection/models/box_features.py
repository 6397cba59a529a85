"""Sample a feature map inside the box of each object query, similar to RoIAlign."""

from torch import Tensor, nn

GRID = 4  # G: number of grid points of a box in each dimension


class BoxFeatures(nn.Module):
    """Module that computes a feature vector for the box of each query.

    A feature map is sampled at a regular grid of G×G points in the box. A linear layer projects all samples of a box to
    one vector of the dimension of a query.

    Attention gathers features without their positions inside the box. With these samples, a query learns classes and
    box corrections in fewer steps. The samples are similar to those of RoIAlign (He et al., Mask R-CNN, ICCV 2017), but
    are computed by two matrix products, which all runtimes support.

    Args:
        channels: channels C of the feature map.
        query_dim: dimension d of a query.
    """

    def __init__(self, channels: int, query_dim: int):
        super().__init__()
        self.project = nn.Linear(GRID * GRID * channels, query_dim)
        self.norm = nn.LayerNorm(query_dim)

    def forward(self, x: Tensor, down: Tensor, across: Tensor) -> Tensor:
        """Return one feature vector for each of the Q boxes: ``(B, Q, d)``.

        ``down`` and ``across`` are the output of :func:`detection.boxes.reference_boxes.sampling_weights`, with
        G = ``GRID``.

        Args:
            x: feature map ``(B, C, H, W)``.
            down: ``(B, Q, G, H)``, weight of each row of the map for each of the G rows of grid points.
            across: ``(B, Q, G, W)``, weight of each column of the map for each of the G columns of grid points.
        """
        _, channels, height, width = x.shape
        rows = down.flatten(1, 2) @ x.permute(0, 2, 3, 1).reshape(-1, height, width * channels)
        samples = across[:, :, None] @ rows.unflatten(1, (-1, GRID)).unflatten(3, (width, channels))
        return self.norm(self.project(samples.flatten(2)))  # samples: (B, Q, G, G, C)
