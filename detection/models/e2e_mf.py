"""E2E-MF: a DETR whose backbone, encoder and decoder are Mobile-Former blocks (Mobile-Former paper, section 4.2)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from detection.boxes.geometry import cxcywh_to_xyxy, iou
from detection.boxes.postprocess import best_classes, to_pixels
from detection.boxes.reference_boxes import attention_bias, correct, grid_boxes, sampling_weights
from detection.losses.criterion import SetCriterion
from detection.losses.dense_criterion import DenseCriterion
from detection.losses.focal import PRIOR_LOGIT
from detection.losses.mixed_precision import at_least_float32, without_autocast
from detection.models.backbone import create_backbone
from detection.models.box_features import GRID, BoxFeatures
from detection.models.dense_head import DenseHead
from detection.models.position_encoding import BoxEmbedding, sine_encoding
from detection.models.variants import E2EVariant
from mobile_former.bridge import FormerToMobile, MobileToFormer
from mobile_former.errors import InputError
from mobile_former.former import Former
from mobile_former.layers.checkpointing import recomputable
from mobile_former.layers.conv_norm import ConvNorm, depthwise
from mobile_former.layers.linear import linear
from mobile_former.layers.padding import content_size, double, padding_pyramid, zero_padding
from mobile_former.mobile import Mobile

SCALES = (32, 16, 8)  # strides of the feature maps that the head uses, coarse to fine

# Factor of the queries' gradient in the feature maps, if a dense head also trains these maps. The full gradient of the
# class losses of the queries would worsen the boxes of the dense head, and the queries start from these boxes.
QUERY_GRADIENT = 0.25

COPY_IOU = 0.7  # a position whose box overlaps the box of a better position more than this is its copy
CANDIDATES = 8  # per query: the number of positions that can become queries


class E2EMobileFormer(nn.Module):
    """E2E-MF detector: object queries pass through Mobile-Former blocks that work on feature maps at three strides.

    A class and a box are predicted from each query after each block. With all options off, this is the detector of the
    Mobile-Former paper. The options make it learn from less data in less time, see ``experiments/README.md``.

    Args:
        variant: configuration of the detector.
        num_classes: number of classes K.
        focal: predict classes by sigmoids with focal loss and a focal matching cost. If false, a softmax with the class
            "no object" is used.
        refine_boxes: each block corrects the boxes of the previous block, and each query attends mainly to the area
            around its box. If false, each block predicts new boxes.
        dense_head: add a head that predicts at every position of the feature maps. Without ``choose_queries``, the head
            runs only in training.
        choose_queries: initialise the queries from positions of the dense head, see :func:`distinct_positions`; needs
            ``refine_boxes`` and ``dense_head``. The blocks on the finest map also sample the map inside the queries'
            boxes, and a second classifier learns from several queries for each object. If an image has fewer positions
            than queries, some queries start on padding. Only in this case do the detections depend on the amount of
            padding.
        backbone: name of a backbone that replaces the one in ``variant``, see
            :func:`detection.models.backbone.create_backbone`. None: the one in ``variant``.

    Raises:
        InputError: ``choose_queries`` is given without ``refine_boxes`` and ``dense_head``, or the backbone is unknown.
    """

    def __init__(
        self,
        variant: E2EVariant,
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
            raise InputError("choose_queries needs refine_boxes and dense_head: switch both on, or choose_queries off")
        width, query_dim = variant.width, variant.query_dim
        self.num_classes = num_classes
        self.backbone_name = backbone or variant.backbone
        self.focal = focal
        self.backbone = create_backbone(self.backbone_name)
        self.strides = [stride for stride, _ in variant.blocks]  # of each block
        self.scales = list(SCALES)
        self.project = nn.ModuleDict({str(s): ConvNorm(self.backbone.channels[s], width) for s in self.scales})
        self.merge = nn.ModuleDict({str(s): depthwise(width, 1) for s in self.scales[1:]})
        self.dense = DenseHead(width, self.scales, num_classes, separable=variant.separable) if dense_head else None
        self.start = QueryStart(variant, refine_boxes=refine_boxes, choose_queries=choose_queries)
        self.blocks = nn.ModuleList(
            HeadBlock(width, query_dim, expansion, sample_boxes=choose_queries and stride == self.scales[-1])
            for stride, expansion in variant.blocks
        )
        self.blocks[-1].freeze_map()
        self.predict = PredictionHeads(
            query_dim, num_classes, focal=focal, refine_boxes=refine_boxes, one_to_many=choose_queries
        )
        self.criterion = SetCriterion(num_classes, focal=focal)
        self.dense_criterion = DenseCriterion()

    def forward(self, images: Tensor, padding_mask: Tensor | None = None) -> dict:
        """Predict the class logits and the box of each query.

        Args:
            images: normalised images ``(B, 3, H, W)``, with padding only on the right and at the bottom.
            padding_mask: ``(B, H, W)`` bool, True on padding; None if there is no padding.

        Returns:
            A dictionary:

            - ``logits``: ``(B, Q, K+1)``, or ``(B, Q, K)`` with ``focal``. The additional class K is "no object".
            - ``boxes``: ``(B, Q, 4)``, cxcywh, normalised to 0..1 by the size of the image without padding.
            - ``one_to_many``: class logits ``(B, Q, K)`` of a second classifier, see :class:`PredictionHeads`. It is
              missing without ``choose_queries`` and in the inference form (:func:`mobile_former.deploy`).
            - ``auxiliary``: list with one dictionary for each block except the last. It contains the ``logits``,
              ``boxes`` and ``one_to_many`` predicted after this block.
            - ``dense``: output of :class:`DenseHead`; missing if the dense head did not run.
        """
        maps, _ = self.backbone(images, padding_mask)
        maps = {scale: self.project[str(scale)](maps[scale]) for scale in self.scales}
        padding = {} if padding_mask is None else padding_pyramid(padding_mask, tuple(self.scales))
        extent = content_size(images, padding_mask)
        dense = None
        if self.dense is not None and (self.training or self.start.choose_queries):
            dense = self.dense(maps, padding, extent)
            if self.training:  # elsewhere, gradients of the loss do not matter
                maps = {scale: scale_gradient(x, QUERY_GRADIENT) for scale, x in maps.items()}
                dense |= {"features": scale_gradient(dense["features"], QUERY_GRADIENT)}

        queries = self.start(images.shape[0], dense)
        x, predictions = None, []
        for scale in self.scales:
            x = self._enter_scale(x, maps[scale], scale, padding)
            encoding = sine_encoding(x, padding.get(scale))
            for block in self._blocks_at(scale):
                bias = samples = None
                if queries.boxes is not None:
                    bias = attention_bias(queries.boxes, x.shape[2:], scale, extent)
                if block.box_features is not None:
                    samples = sampling_weights(queries.boxes, x.shape[2:], scale, extent, GRID, padding.get(scale))
                x, content, position = block(
                    x, queries.content, queries.position, encoding, padding.get(scale), bias, samples
                )
                predictions.append(self.predict(content, queries.boxes))
                queries = self.start.move(Queries(content, position, queries.boxes), predictions[-1]["boxes"])
        outputs = predictions[-1] | {"auxiliary": predictions[:-1]}
        return outputs if dense is None else outputs | {"dense": dense}

    def loss(self, outputs: dict, targets: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Compute the losses of :class:`SetCriterion`, and those of :class:`DenseCriterion` if the dense head ran.

        With ``choose_queries``, each layer has an additional loss with one-to-many assignment (Zhao et al., MS-DETR,
        CVPR 2024). It is the total loss of :class:`DenseCriterion`, computed for queries instead of map positions.

        Args:
            outputs: output of :meth:`forward`.
            targets: list with one dictionary for each image: ``labels`` ``(n,)`` long, and ``boxes`` ``(n, 4)``,
                cxcywh, normalised to 0..1.

        Returns:
            A dictionary from name to scalar: each loss before weighting, and ``total``, the weighted sum of all losses.
            ``loss_one_to_many`` is the sum of the additional losses.
        """
        losses = self.criterion(outputs, targets)
        total = losses["total"]
        if "dense" in outputs:
            dense = self.dense_criterion(outputs["dense"], targets)
            total = total + dense.pop("total")
            losses |= dense
        if "one_to_many" in outputs:
            layers = (outputs, *outputs["auxiliary"])
            losses["loss_one_to_many"] = sum(self._one_to_many_loss(layer, targets) for layer in layers)
            total = total + losses["loss_one_to_many"]
        return losses | {"total": total}

    def _one_to_many_loss(self, layer: dict[str, Tensor], targets: Sequence[dict[str, Tensor]]) -> Tensor:
        logits, boxes = (at_least_float32(layer[name]) for name in ("one_to_many", "boxes"))
        queries = {
            "logits": logits,
            "boxes": boxes,
            "centres": boxes.detach()[..., :2],
            "padding": boxes.new_zeros(boxes.shape[:2], dtype=torch.bool),
        }
        return self.dense_criterion(queries, targets)["total"]

    @property
    def max_detections(self) -> int:
        """Maximum number of detections in an image."""
        return self.start.queries

    def postprocess(self, outputs: dict, image_sizes: Sequence[tuple[int, int]]) -> list[dict[str, Tensor]]:
        """Return one detection for each query: its best class and its box.

        With ``focal``, several classes of a query may have high scores. Even then, only the best class is returned.

        Args:
            outputs: output of :meth:`forward`.
            image_sizes: list with a tuple (height, width) for each image, usually its original size. Boxes are scaled
                to this size.

        Returns:
            List with one dictionary for each image: ``boxes`` ``(Q, 4)``, xyxy in pixels, clipped to the image;
            ``scores`` ``(Q,)``, in 0..1; ``labels`` ``(Q,)`` long. The detections of an image are sorted by descending
            score.
        """
        return to_pixels(self.decode(outputs), image_sizes)

    def decode(self, outputs: dict) -> dict[str, Tensor]:
        """Convert the output of :meth:`forward` to the best class, its score and the box of each query.

        Args:
            outputs: output of :meth:`forward`.

        Returns:
            A dictionary: ``boxes`` ``(B, Q, 4)``, xyxy, normalised to 0..1; ``scores`` ``(B, Q)``; and ``labels``
            ``(B, Q)`` long. The queries of each image are sorted by descending score.
        """
        return best_classes(self.probabilities(outputs["logits"]), outputs["boxes"])

    def probabilities(self, logits: Tensor) -> Tensor:
        """Convert the ``logits`` of :meth:`forward` to class probabilities ``(B, Q, K)``.

        The class "no object" is left out.
        """
        logits = logits.float()
        return logits.sigmoid() if self.focal else logits.softmax(-1)[..., :-1]

    def _blocks_at(self, scale: int) -> list["HeadBlock"]:
        return [block for block, stride in zip(self.blocks, self.strides, strict=True) if stride == scale]

    def _enter_scale(self, x: Tensor | None, entering: Tensor, stride: int, padding: dict[int, Tensor]) -> Tensor:
        """Combine the feature map ``x`` of the previous block with the backbone's map at the next finer stride.

        ``x`` is upsampled and added to the backbone's map, and a depthwise convolution is applied to the sum. If ``x``
        is None, the backbone's map is returned unchanged.

        Args:
            x: feature map of the previous block, at twice the stride ``stride``; None before the first block.
            entering: map of the backbone.
            stride: stride of ``entering`` in pixels.
            padding: dictionary from stride to mask ``(B, 1, H, W)``, True on padding; empty if there is no padding.
        """
        if x is None:
            return entering
        x = double(x, padding.get(2 * stride), entering.shape[2:])
        return self.merge[str(stride)](zero_padding(x + entering, padding.get(stride)))


@dataclass(frozen=True)
class Queries:
    """State of the object queries between two blocks.

    Attributes:
        content: features ``(B, Q, d)``, which attention gathers from the feature maps.
        position: position embeddings ``(B, Q, d)``.
        boxes: reference boxes ``(B, Q, 4)``, cxcywh, normalised to 0..1; None if boxes are not refined.
    """

    content: Tensor
    position: Tensor
    boxes: Tensor | None


class QueryStart(nn.Module):
    """Module that returns the initial object queries, and moves queries to their predicted boxes after each block.

    By default, queries start from learned position embeddings. With ``refine_boxes``, they start from learned boxes.
    With ``choose_queries``, they start from the best distinct predictions of the dense head.

    Args:
        variant: configuration of the detector.
        refine_boxes: whether queries have reference boxes.
        choose_queries: whether the initial reference boxes come from the dense head.
    """

    no_weight_decay = frozenset({"box_logits"})  # decay would pull all boxes to the centre of the image

    def __init__(self, variant: E2EVariant, *, refine_boxes: bool, choose_queries: bool):
        super().__init__()
        self.queries = variant.queries
        self.choose_queries = choose_queries
        self.embed = BoxEmbedding(variant.query_dim) if refine_boxes else None
        if choose_queries:
            self.content = nn.Sequential(
                nn.Linear(2 * variant.width, variant.query_dim), nn.LayerNorm(variant.query_dim)
            )
        elif refine_boxes:
            self.box_logits = nn.Parameter(grid_boxes(variant.queries).logit(eps=1e-3))
        else:
            self.position = nn.Parameter(torch.randn(variant.queries, variant.query_dim))

    def forward(self, batch_size: int, dense: dict[str, Tensor] | None) -> Queries:
        """Return the initial object queries of a batch of images as :class:`Queries`.

        Args:
            batch_size: number of images B.
            dense: output of :class:`DenseHead`. It is only used with ``choose_queries`` and may be None otherwise.
        """
        if self.choose_queries:
            return self._best_positions(dense)
        if self.embed is None:
            boxes, position = None, self.position.expand(batch_size, -1, -1)
        else:
            boxes = self.box_logits.sigmoid().expand(batch_size, -1, -1)
            position = self.embed(boxes)
        return Queries(torch.zeros_like(position), position, boxes)

    def _best_positions(self, dense: dict[str, Tensor]) -> Queries:
        best = distinct_positions(dense, self.queries)
        # The dense head learns its predictions only from its own loss.
        boxes = dense["boxes"].detach().gather(1, best.expand(-1, -1, 4)).clamp(0, 1)
        features = dense["features"].gather(1, best.expand(-1, -1, dense["features"].shape[2]))
        return Queries(self.content(features), self.embed(boxes), boxes)

    def move(self, queries: Queries, boxes: Tensor) -> Queries:
        """Return new queries whose reference boxes are the predicted boxes ``(B, Q, 4)``.

        The position embeddings are updated to fit the new boxes. Queries without reference boxes are returned
        unchanged.
        """
        if self.embed is None:
            return queries
        boxes = boxes.detach()  # each block learns only its own correction
        return Queries(queries.content, queries.position + self.embed(boxes) - self.embed(queries.boxes), boxes)


def scale_gradient(x: Tensor, share: float) -> Tensor:
    """Return ``x`` unchanged. In the backward pass, its gradient is multiplied by ``share``."""
    return x.detach().lerp(x, share)


def distinct_positions(dense: dict[str, Tensor], count: int) -> Tensor:
    """For each image, return the indices of positions with high class logits and distinct boxes.

    A position is a copy if its box and the box of a position with a higher logit have an IoU above 0.7. The classes of
    the two positions do not matter. Without copies, each object has few queries, so that the queries also suffice for
    crowded images (Zhang et al., Dense Distinct Query, CVPR 2023). In contrast to non-maximum suppression, the position
    with the higher logit may itself be a copy. All pairs can therefore be compared at once, without a loop.

    Only ``8 * count`` positions are candidates: first peaks, then other positions, both by descending logit. Copies and
    positions on padding are returned only if there are too few other candidates.

    Args:
        dense: ``logits``, ``boxes`` and ``peaks`` of P positions, see :class:`detection.models.dense_head.DenseHead`.
        count: number of positions.

    Returns:
        ``(B, Q, 1)`` long, in the order of preference. Q is ``count``, or P if that is less.
    """
    scores = dense["logits"].detach().amax(-1)
    lowest = torch.finfo(scores.dtype).min
    # In torch.export, min() would be constant.
    number = torch.sym_min(CANDIDATES * count, scores.shape[1])
    # Logits differ by less than 100, so that peaks come first. Of equal values, topk() may return any: an exported file
    # must choose the same padding.
    places = torch.arange(scores.shape[1], dtype=scores.dtype, device=scores.device)
    preference = torch.where(scores == lowest, -1e4 - places, torch.where(dense["peaks"], scores, scores - 100))
    candidates = preference.topk(number, dim=1).indices
    scores = scores.gather(1, candidates)
    boxes = dense["boxes"].detach().gather(1, candidates[..., None].expand(-1, -1, 4)).clamp(0, 1)
    corners = cxcywh_to_xyxy(boxes)
    overlaps = iou(corners[:, :, None], corners[:, None]) > COPY_IOU
    copies = torch.logical_and(overlaps, scores[:, None] > scores[:, :, None]).any(-1)  # Core ML Tools do not know &
    rank = torch.arange(scores.shape[1], dtype=scores.dtype, device=scores.device)
    order = torch.where(torch.logical_or(copies, scores == lowest), rank + scores.shape[1], rank)
    best = order.topk(torch.sym_min(count, scores.shape[1]), dim=1, largest=False).indices
    return candidates.gather(1, best)[..., None]


class HeadBlock(nn.Module):
    """Mobile-Former block whose tokens are object queries with features (content) and position embeddings.

    Args:
        channels: channels of the feature map.
        query_dim: dimension of a query.
        expansion: expansion of the inverted bottleneck.
        sample_boxes: whether to sample the feature map inside the box of each query, and add the result to the features
            of the query.

    Attributes:
        updates_map: whether the block updates the feature map and the position embeddings. In the last block of a
            detector that is converted for inference, this is False, because both updates are unused there.
    """

    def __init__(self, channels: int, query_dim: int, expansion: int, *, sample_boxes: bool = False):
        super().__init__()
        self.updates_map = True
        self.box_features = BoxFeatures(channels, query_dim) if sample_boxes else None
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
        bias: Tensor | None,
        samples: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Update the feature map, and the features and position embeddings of the queries.

        Args:
            x: feature map ``(B, C, H, W)``.
            content: features of the queries ``(B, Q, d)``.
            position: position embeddings of the queries ``(B, Q, d)``.
            encoding: position encoding of the feature map ``(B or 1, C, H, W)``.
            padding: ``(B, 1, H, W)`` bool, True on padding; None if there is no padding.
            bias: ``(B, Q, H·W)``, added to the attention logits of the queries; None for no bias.
            samples: weights of the rows and columns of the map for :class:`BoxFeatures`; only used with
                ``sample_boxes``.

        Returns:
            A tuple of the updated ``x``, ``content`` and ``position``, of the same shapes.
        """
        if self.box_features is not None:
            content = content + self.box_features(x, *samples)
        content, _ = self.to_former(x, content, padding, token_position=position, map_position=encoding, focus=bias)
        content = self.former(content, position)
        if not self.updates_map:
            return x, content, position
        x = self.mobile(x, content.mean(1), padding=padding)
        x = self.to_mobile(x, content, position)
        return x, content, position + self.adapt(content)

    def freeze_map(self) -> None:
        """Freeze the layers that update the feature map and the position embeddings.

        This method is called on the last block. The feature map and position embeddings that it updates are not used,
        so these layers get no gradient. If they were not frozen, distributed training would wait for their gradients.
        """
        for part in (self.mobile, self.to_mobile, self.adapt):
            part.requires_grad_(False)


class PredictionHeads(nn.Module):
    """Layers that predict the class and the box of each query. The same layers are used after every block.

    Args:
        query_dim: dimension of a query.
        num_classes: number of classes K.
        focal: predict K class logits for sigmoids. If false, predict K+1 logits for a softmax with "no object".
        refine_boxes: whether boxes are predicted as corrections of reference boxes.
        one_to_many: add a second classifier for training. It learns from a loss that assigns several queries to each
            object. The other classifier learns from one query for each object, and therefore avoids duplicates.
    """

    def __init__(self, query_dim: int, num_classes: int, *, focal: bool, refine_boxes: bool, one_to_many: bool = False):
        super().__init__()
        self.classify = nn.Linear(query_dim, num_classes if focal else num_classes + 1)
        self.box = nn.Sequential(
            nn.Linear(query_dim, query_dim),
            nn.ReLU(),
            nn.Linear(query_dim, query_dim),
            nn.ReLU(),
            nn.Linear(query_dim, 4),
        )
        self.classify_many = nn.Linear(query_dim, num_classes) if one_to_many else None
        if focal:
            nn.init.constant_(self.classify.bias, PRIOR_LOGIT)
        if one_to_many:
            nn.init.constant_(self.classify_many.bias, PRIOR_LOGIT)
        if refine_boxes:  # initial corrections are 0
            nn.init.zeros_(self.box[-1].weight)
            nn.init.zeros_(self.box[-1].bias)

    def forward(self, content: Tensor, boxes: Tensor | None) -> dict[str, Tensor]:
        """Predict class logits and boxes from the features of the queries.

        Args:
            content: features ``(B, Q, d)``.
            boxes: reference boxes ``(B, Q, 4)``, cxcywh, normalised to 0..1; None if boxes are not refined.

        Returns:
            A dictionary: ``logits`` ``(B, Q, K+1)``, or ``(B, Q, K)`` with ``focal``; ``boxes`` ``(B, Q, 4)``, cxcywh,
            normalised to 0..1; and ``one_to_many`` ``(B, Q, K)`` if there is a second classifier.
        """
        # In half precision, the side of a box would be rounded to several pixels of a large image.
        with without_autocast(content.device):
            values = at_least_float32(self.box(content.to(self.box[0].weight.dtype)))
        predictions = {
            "logits": self.classify(content),
            "boxes": values.sigmoid() if boxes is None else correct(boxes, values),
        }
        if self.classify_many is not None:
            predictions["one_to_many"] = self.classify_many(content)
        return predictions
