"""E2E-MF: a DETR whose backbone, encoder and decoder are Mobile-Former blocks (section 4.2 of the paper)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from detection.boxes.detections import best_classes, in_frames
from detection.boxes.reference_boxes import BoxEmbedding, correct, focus, grid_boxes
from detection.losses.criterion import SetCriterion
from detection.losses.dense_criterion import DenseCriterion
from detection.losses.focal import PRIOR_LOGIT
from detection.losses.precision import at_least_float32, without_autocast
from detection.models.backbone import create_backbone
from detection.models.dense_head import DenseHead
from detection.models.position_encoding import sine_encoding
from detection.models.variants import E2EVariant
from mobile_former.bridge import FormerToMobile, MobileToFormer
from mobile_former.errors import InputError
from mobile_former.former import Former
from mobile_former.layers.checkpointing import recomputable
from mobile_former.layers.conv_norm import ConvNorm, depthwise
from mobile_former.layers.linear import linear
from mobile_former.layers.padding import content_size, double, padding_pyramid, zero_padding
from mobile_former.mobile import Mobile


class E2EMobileFormer(nn.Module):
    """Object queries that pass Mobile-Former blocks over three scales, predicting after each.

    The published detector is the one with all options off; they make it learn from less data in less time
    (``experiments/README.md``).

    Args:
        spec: the numbers of a variant.
        num_classes: number of classes K.
        focal: classes by sigmoid, with a focal cost and loss, in place of softmax with "no object".
        refine_boxes: each block corrects the boxes of the one before, and queries look around their boxes.
        dense_head: every position of the maps predicts as well, in training alone unless queries are chosen.
        choose_queries: queries start from the best positions of the dense head; needs both options before. (An image
            that has fewer positions than there are queries gets as many more as its batch is padded to; it is the one
            case in which padding makes a difference.)
        backbone: in place of the variant's, see :func:`detection.models.backbone.create_backbone`.

    Raises:
        InputError: options that do not go together.
    """

    def __init__(
        self,
        spec: E2EVariant,
        num_classes: int,
        *,
        focal: bool = False,
        refine_boxes: bool = False,
        dense_head: bool = False,
        choose_queries: bool = False,
        backbone: str | None = None,
    ):
        super().__init__()
        if choose_queries and not (refine_boxes and dense_head):
            raise InputError("choose_queries needs refine_boxes and dense_head: queries are boxes of the dense head")
        self.num_classes = num_classes
        self.backbone_name = backbone or spec.backbone
        self.focal = focal
        self.backbone = create_backbone(self.backbone_name)
        self.scales = list(dict.fromkeys(stride for stride, _ in spec.blocks))  # coarse to fine
        self.project = nn.ModuleDict({str(s): ConvNorm(self.backbone.channels[s], spec.width) for s in self.scales})
        self.merge = nn.ModuleDict({str(s): depthwise(spec.width, 1) for s in self.scales[1:]})
        self.dense = DenseHead(spec.width, self.scales, num_classes) if dense_head else None
        self.start = QueryStart(spec, refine_boxes=refine_boxes, choose_queries=choose_queries)
        self.strides = [stride for stride, _ in spec.blocks]
        self.blocks = nn.ModuleList(HeadBlock(spec.width, spec.query_dim, expansion) for _, expansion in spec.blocks)
        self.blocks[-1].freeze_map()
        self.predict = PredictionHeads(spec.query_dim, num_classes, focal=focal, refine_boxes=refine_boxes)
        self.criterion = SetCriterion(num_classes, focal=focal)
        self.dense_criterion = DenseCriterion()

    def forward(self, images: Tensor, padding_mask: Tensor | None = None) -> dict:
        """Detect objects.

        Args:
            images: ``(B, 3, H, W)``, normalised.
            padding_mask: ``(B, H, W)`` bool, True on padding, each image being at the top left of its place.

        Returns:
            ``logits`` ``(B, Q, K+1)``, the last class being "no object" (``focal``: ``(B, Q, K)``); ``boxes``
            ``(B, Q, 4)``, cxcywh in 0..1 of the image without its padding; ``auxiliary``, the same after each block
            but the last; and, where it ran, ``dense``, what :class:`DenseHead` gave.
        """
        maps, _ = self.backbone(images, padding_mask)
        maps = {scale: self.project[str(scale)](maps[scale]) for scale in self.scales}
        padding = {} if padding_mask is None else padding_pyramid(padding_mask, tuple(self.scales))
        extent = content_size(images, padding_mask)
        dense = None
        if self.dense is not None and (self.training or self.start.choose_queries):
            dense = self.dense(maps, padding, extent)

        queries = self.start(images.shape[0], dense)
        x, scale, predictions = None, None, []
        for block, stride in zip(self.blocks, self.strides, strict=True):
            if stride != scale:
                x, scale = self._enter_scale(x, maps[stride], stride, padding), stride
                encoding = sine_encoding(x, padding.get(stride))
            looking = None if queries.boxes is None else focus(queries.boxes, x.shape[2:], stride, extent)
            x, content, position = block(x, queries.content, queries.position, encoding, padding.get(stride), looking)
            predictions.append(self.predict(content, queries.boxes))
            queries = self.start.move(Queries(content, position, queries.boxes), predictions[-1]["boxes"])
        outputs = predictions[-1] | {"auxiliary": predictions[:-1]}
        return outputs if dense is None else outputs | {"dense": dense}

    def loss(self, outputs: dict, targets: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Compare what :meth:`forward` gave with the objects, see :class:`SetCriterion` and :class:`DenseCriterion`."""
        losses = self.criterion(outputs, targets)
        if "dense" not in outputs:
            return losses
        dense = self.dense_criterion(outputs["dense"], targets)
        return losses | dense | {"total": losses["total"] + dense["total"]}

    def postprocess(self, outputs: dict, image_sizes: Sequence[tuple[int, int]]) -> list[dict[str, Tensor]]:
        """Each query's best class and its box in pixels; with ``focal`` too, where others list several of its classes.

        Args:
            outputs: what :meth:`forward` gave.
            image_sizes: for each image height and width of the frame in which its boxes are wanted.

        Returns:
            For each image ``boxes`` ``(Q, 4)`` xyxy, clipped to the frame, ``scores`` ``(Q,)`` in 0..1 and ``labels``
            ``(Q,)``, best first.
        """
        return in_frames(self.decode(outputs), image_sizes)

    def decode(self, outputs: dict) -> dict[str, Tensor]:
        """As :meth:`postprocess`, of all images in one, in shares of the image: see :func:`best_classes`."""
        return best_classes(self.probabilities(outputs["logits"]), outputs["boxes"])

    def probabilities(self, logits: Tensor) -> Tensor:
        """Of the classes, ``(B, Q, K)``, from the logits of :meth:`forward`, ``(B, Q, K+1)`` (``focal``: K)."""
        logits = logits.float()
        return logits.sigmoid() if self.focal else logits.softmax(-1)[..., :-1]

    def _enter_scale(self, x: Tensor | None, entering: Tensor, stride: int, padding: dict[int, Tensor]) -> Tensor:
        if x is None:
            return entering
        x = double(x, padding.get(2 * stride), entering.shape[2:])
        return self.merge[str(stride)](zero_padding(x + entering, padding.get(stride)))


@dataclass(frozen=True)
class Queries:
    """Object queries between two blocks.

    Attributes:
        content: what they have gathered, ``(B, Q, d)``.
        position: where they are, ``(B, Q, d)``.
        boxes: their reference boxes, ``(B, Q, 4)``, cxcywh in 0..1; None where boxes are not refined.
    """

    content: Tensor
    position: Tensor
    boxes: Tensor | None


class QueryStart(nn.Module):
    """What queries start from: learned positions, learned boxes, or the best positions of the dense head.

    Args:
        spec: the numbers of a variant.
        refine_boxes: whether queries have reference boxes.
        choose_queries: whether these come from the dense head.
    """

    no_weight_decay = frozenset({"box_logits"})  # which would draw all boxes to the image's centre

    def __init__(self, spec: E2EVariant, *, refine_boxes: bool, choose_queries: bool):
        super().__init__()
        self.queries = spec.queries
        self.choose_queries = choose_queries
        self.embed = BoxEmbedding(spec.query_dim) if refine_boxes else None
        if choose_queries:
            self.content = nn.Sequential(nn.Linear(spec.width, spec.query_dim), nn.LayerNorm(spec.query_dim))
        elif refine_boxes:
            self.box_logits = nn.Parameter(grid_boxes(spec.queries).logit(eps=1e-3))
        else:
            self.position = nn.Parameter(torch.randn(spec.queries, spec.query_dim))

    def forward(self, batch_size: int, dense: dict[str, Tensor] | None) -> Queries:
        """The queries of a batch; ``dense`` is what :class:`DenseHead` gave, where it ran."""
        if self.choose_queries:
            count = torch.sym_min(self.queries, dense["logits"].shape[1])  # min() would fix it in torch.export
            best = dense["logits"].detach().amax(-1).topk(count, dim=1).indices[..., None]  # (B, Q, 1)
            # What the dense head predicts, it learns from its own loss.
            boxes = dense["boxes"].detach().gather(1, best.expand(-1, -1, 4)).clamp(0, 1)
            features = dense["features"].gather(1, best.expand(-1, -1, dense["features"].shape[2]))
            return Queries(self.content(features), self.embed(boxes), boxes)
        if self.embed is not None:
            boxes = self.box_logits.sigmoid().expand(batch_size, -1, -1)
            position = self.embed(boxes)
            return Queries(torch.zeros_like(position), position, boxes)
        position = self.position.expand(batch_size, -1, -1)
        return Queries(torch.zeros_like(position), position, None)

    def move(self, queries: Queries, boxes: Tensor) -> Queries:
        """Let queries go to the boxes ``(B, Q, 4)`` that they predicted, and their positions with them."""
        if self.embed is None:
            return queries
        boxes = boxes.detach()  # each block learns its own correction
        return Queries(queries.content, queries.position + self.embed(boxes) - self.embed(queries.boxes), boxes)


class HeadBlock(nn.Module):
    """A Mobile-Former block whose tokens are object queries, each of a content and a position.

    Args:
        channels: of the map.
        query_dim: width of a query.
        expansion: of the inverted bottleneck.

    Attributes:
        is_read_on: whether anything reads the map and the positions that it gives; else they stay as they are.
    """

    def __init__(self, channels: int, query_dim: int, expansion: int):
        super().__init__()
        self.is_read_on = True
        self.to_former = MobileToFormer(channels, query_dim, gated=False)
        self.former = Former(query_dim)
        self.mobile = Mobile(channels, channels, expansion, query_dim)
        self.to_mobile = FormerToMobile(channels, query_dim)
        self.adapt = nn.Sequential(linear(query_dim, query_dim), nn.ReLU(), linear(query_dim, query_dim))

    @recomputable
    def forward(
        self,
        x: Tensor,
        content: Tensor,
        position: Tensor,
        encoding: Tensor,
        padding: Tensor | None,
        looking: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Update map, contents and positions of the queries.

        Args:
            x: ``(B, C, H, W)``.
            content: of the queries, ``(B, Q, d)``.
            position: of the queries, ``(B, Q, d)``.
            encoding: of the map's positions, ``(B or 1, C, H, W)``.
            padding: ``(B, 1, H, W)`` bool, True on padding, or None for none.
            looking: ``(B, Q, H·W)``, added to the logits of the queries' attention to the map.

        Returns:
            ``x``, ``content`` and ``position``, of the same shapes.
        """
        content, _ = self.to_former(x, content, padding, token_position=position, map_position=encoding, focus=looking)
        content = self.former(content, position)
        if not self.is_read_on:
            return x, content, position
        x = self.mobile(x, content.mean(1), padding=padding)
        x = self.to_mobile(x, content, position)
        return x, content, position + self.adapt(content)

    def freeze_map(self) -> None:
        """Exempt from training what nothing reads after the last block, which processes in parallel would wait for."""
        for part in (self.mobile, self.to_mobile, self.adapt):
            part.requires_grad_(False)


class PredictionHeads(nn.Module):
    """Class and box of each query, shared by all blocks.

    Args:
        query_dim: width of a query.
        num_classes: number of classes K.
        focal: whether classes are told by sigmoid, without a class "no object".
        refine_boxes: whether boxes are corrections of reference boxes.
    """

    def __init__(self, query_dim: int, num_classes: int, *, focal: bool, refine_boxes: bool):
        super().__init__()
        self.classify = nn.Linear(query_dim, num_classes if focal else num_classes + 1)
        self.box = nn.Sequential(
            nn.Linear(query_dim, query_dim),
            nn.ReLU(),
            nn.Linear(query_dim, query_dim),
            nn.ReLU(),
            nn.Linear(query_dim, 4),
        )
        if focal:
            nn.init.constant_(self.classify.bias, PRIOR_LOGIT)
        if refine_boxes:  # to begin with, boxes stay where they are
            nn.init.zeros_(self.box[-1].weight)
            nn.init.zeros_(self.box[-1].bias)

    def forward(self, content: Tensor, boxes: Tensor | None) -> dict[str, Tensor]:
        """From ``(B, Q, d)``, and the reference boxes ``(B, Q, 4)`` if there are some, the queries' predictions.

        Returns:
            ``logits`` ``(B, Q, K+1)``, or ``(B, Q, K)``, and ``boxes`` ``(B, Q, 4)``, cxcywh in 0..1.
        """
        # Half precision would round a box's side to several pixels of a large image.
        with without_autocast(content.device):
            found = at_least_float32(self.box(content.to(self.box[0].weight.dtype)))
        return {
            "logits": self.classify(content),
            "boxes": found.sigmoid() if boxes is None else correct(boxes, found),
        }
