"""LightningModule that trains and evaluates a detector."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pytorch_lightning import Callback, LightningModule
from rich.markup import escape
from rich.table import Table
from torch import Tensor, nn
from torchmetrics import MeanMetric

import mobile_former
from detection.data.batch import Source
from detection.data.module import DetectionData
from detection.evaluation import NUMBERS, SCORED_DETECTIONS, CocoAP
from detection.inference import category_ids, configured_detector, detect
from detection.models.retinanet import RetinaNet
from detection.models.variants import E2E_VARIANTS
from detection.models.weights import load_detector_weights
from detection.pictures import draw_comparison
from mobile_former.ablation import model_label
from mobile_former.training.console import console
from mobile_former.training.data.dataset import indices_to_look_at
from mobile_former.training.optimisation import Optimisation
from mobile_former.training.run.report import figure

_logger = logging.getLogger(__name__)

SHEET_THRESHOLD = 0.3  # minimum score of detections on predictions.png
_SHEET_IMAGES = 8


class DetectionModule(LightningModule):
    """LightningModule that trains and evaluates a detector.

    Args:
        class_names: class names in the order of the labels.
        name: name of a detector, see :func:`detection.list_detectors`.
        backbone: name of a backbone that replaces the detector's own: another Mobile-Former, timm/NAME, or
            transformers/resnetN with N = 18, 34, 50 or 101. The libraries timm and transformers need the pip extra
            "baselines". Default: the detector's own backbone.
        pretrained: file with initial weights: a path, hf://owner/name, or an https:// URL that ends in #sha256=… (the
            SHA-256 of the file). If these are the weights of a classifier (by the paper's authors or this project),
            only the backbone is loaded. If they are the weights of the same detector, it may have other classes than
            ``class_names``. Default: random weights.
        ablation: names of ablations, separated by commas, see :func:`detection.models.ablation.ablate`. Each ablation
            removes a part of the detector. Default: none.
        focal: predict classes by sigmoids with focal loss. If false, a softmax with the class "no object" is used.
            RetinaNet and DETR ignore this option, ``refine_boxes``, ``dense_head`` and ``choose_queries``.
        refine_boxes: each block of the detection head corrects the boxes of the previous block, and each object query
            attends mainly to the area around its box. If false, each block predicts new boxes.
        dense_head: in training, add a head that predicts at every position of the feature maps. The backbone then
            learns faster.
        choose_queries: initialise the object queries from the best distinct predictions of the dense head, and sample
            the finest feature map in their boxes. The dense head then also runs in inference. This option needs
            ``refine_boxes`` and ``dense_head``.
        num_queries: number of object queries of E2E-MF or DETR. It is also the maximum number of detections in an
            image. Default: 50 for e2e_mf_26m and e2e_mf_52m, otherwise 100.
        max_detections: maximum number of detections of RetinaNet in an image. Default: 100.
        learning_rate: peak learning rate.
        backbone_learning_rate: peak learning rate of the backbone. Default: learning_rate.
        learning_rate_batch: total batch size (all images per optimiser step) to which the learning rates apply. If a
            run has another total batch size, its learning rates are scaled in proportion. Default: no scaling.
        weight_decay: weight decay of all parameters except biases and norm layers.
        warmup_epochs: number of epochs at the start during which the learning rates rise.
        milestones: epochs after which the learning rates are divided by 10. Default: cosine decay to 0.
        ema_decay: decay of an exponential moving average of the weights. The average is evaluated and saved instead of
            the weights. 0: no average.
        freeze_batch_norm: keep the weights and statistics of the backbone's BatchNorm layers fixed, as is usual with
            small batches and a pretrained backbone.
        checkpoint_gradients: recompute activations in the backward pass instead of storing them. This takes less memory
            and more time. Only for Mobile-Former backbones.
        category_ids: COCO category id of each class, in the order of class_names. Detection results in COCO format
            contain these ids. Default: 1, 2, 3 and so on.

    Raises:
        InputError: the name is unknown, a value is out of range, or the weights file does not fit.
        FileNotFoundError: the weights file does not exist.
    """

    monitor = "val/AP"
    architecture = (
        "name", "backbone", "ablation", "focal", "refine_boxes", "dense_head", "choose_queries", "num_queries",
    )  # fmt: skip

    def __init__(
        self,
        class_names: list[str],
        name: str = "e2e_mf_294m",
        backbone: str | None = None,
        pretrained: str | None = None,
        ablation: str | None = None,
        focal: bool = False,
        refine_boxes: bool = False,
        dense_head: bool = False,
        choose_queries: bool = False,
        num_queries: int | None = None,
        max_detections: int | None = None,
        learning_rate: float = 1e-4,
        backbone_learning_rate: float | None = None,
        learning_rate_batch: int | None = None,
        weight_decay: float = 1e-4,
        warmup_epochs: float = 0.0,
        milestones: list[int] | None = None,
        ema_decay: float = 0.0,
        freeze_batch_norm: bool = False,
        checkpoint_gradients: bool = False,
        category_ids: list[int] | None = None,
    ):
        super().__init__()
        self.optimisation = Optimisation(
            learning_rate,
            backbone_learning_rate,
            learning_rate_batch,
            weight_decay,
            warmup_epochs,
            milestones,
            ema_decay,
        )
        class_names = list(class_names)
        self.save_hyperparameters(ignore=["pretrained"], logger=False)
        self.model = self._build_model(pretrained)
        self.val_loss, self.test_loss = MeanMetric(), MeanMetric()
        self.average_precision: CocoAP | None = None  # created for the data that is scored
        self.annotated = True  # whether that data has annotations
        self.scores: dict[str, float] = {}  # of the last evaluation
        self.per_class: dict[str, float] = {}
        self.train()  # Lightning keeps this mode, with frozen BatchNorms in evaluation mode

    def _build_model(self, pretrained: str | None) -> nn.Module:
        options = self.hparams
        model = configured_detector(**options)
        if pretrained is not None:
            load_detector_weights(model, pretrained)
        if options.freeze_batch_norm:
            for norm in _batch_norms(model.backbone):
                norm.requires_grad_(False)
        if options.checkpoint_gradients:
            mobile_former.checkpoint_gradients(model)
        return model

    def train(self, mode: bool = True) -> "DetectionModule":
        """Switch between training and evaluation mode. Frozen BatchNorm layers always stay in evaluation mode."""
        super().train(mode)
        if self.hparams.freeze_batch_norm:
            for norm in _batch_norms(self.model.backbone):
                norm.eval()
        return self

    def forward(self, images: Tensor, padding_mask: Tensor | None = None) -> dict:
        """Return the output of the detector's ``forward`` method for normalised images ``(B, 3, H, W)``.

        ``padding_mask`` ``(B, H, W)`` is True on padding. None: there is no padding.
        """
        return self.model(images, padding_mask)

    def training_step(self, batch: dict, batch_idx: int) -> Tensor:
        """Compute and log the losses of a batch. Return the total loss."""
        outputs = self.model(batch["image"], batch["padding_mask"])
        losses = self.model.loss(outputs, batch["targets"])
        count = len(batch["image"])
        self.log("train/loss", losses["total"], on_epoch=True, on_step=False, sync_dist=True, batch_size=count)
        self.log("loss", losses["total"], prog_bar=True, batch_size=count)
        for name, value in losses.items():
            if name != "total" and not name[-1].isdigit():  # not those of auxiliary outputs, which are many
                self.log(f"train/{name}", value, on_epoch=True, on_step=False, sync_dist=True, batch_size=count)
                self.log(name.removeprefix("loss_"), value, prog_bar=True, logger=False, batch_size=count)
        self.log_dict(self.optimisation.rates(self.trainer), batch_size=count)
        return losses["total"]

    def on_fit_start(self) -> None:
        """Log a warning if training images have more objects than the model can detect."""
        counts, most = self.trainer.datamodule.object_counts, self.model.max_detections
        if not self.trainer.is_global_zero:
            return
        if counts.max() > most:
            _logger.warning(
                "%d of %d training images have more than %d objects (at most %d), but %s detects at most %d objects "
                "in an image: recall can be %.2f at most; raise --model.%s, or cut the images into tiles",
                (counts > most).sum(),
                len(counts),
                most,
                counts.max(),
                self.hparams.name,
                most,
                np.minimum(counts, most).sum() / counts.sum(),
                "max_detections" if isinstance(self.model, RetinaNet) else "num_queries",
            )

    def setup(self, stage: str) -> None:
        """Create the COCO metric for the test set if ``stage`` is ``"test"``, otherwise for the validation set."""
        data = self.trainer.datamodule
        source = (data.test_set if stage == "test" else data.val_set).source
        self.annotated = source.annotated
        self.average_precision = self.metric(source)

    def metric(self, source: Source) -> CocoAP:
        """Build the COCO metric for the images of ``source``.

        The metric uses at most N detections per class and image. N is 100, as in COCO's own evaluation. If the model
        can return more than 100 detections for an image, N is the maximum number of detections of the model.
        """
        counted = max(SCORED_DETECTIONS, self.model.max_detections)
        return CocoAP(source.ground_truth(), source.category_ids, counted)

    def on_validation_epoch_start(self) -> None:
        """Reset the COCO metric."""
        self.average_precision.reset()

    def validation_step(self, batch: dict, batch_idx: int) -> None:
        """Update the metrics with the loss and the detections of a batch."""
        self._evaluate(batch, self.val_loss)

    def on_validation_epoch_end(self) -> None:
        """Log the mean loss and the twelve COCO scores."""
        self._log_scores("val", self.val_loss)

    def on_test_epoch_start(self) -> None:
        """Reset the COCO metric."""
        self.average_precision.reset()

    def test_step(self, batch: dict, batch_idx: int) -> None:
        """Update the metrics with the loss and the detections of a batch."""
        self._evaluate(batch, self.test_loss)

    def on_test_epoch_end(self) -> None:
        """Log the mean loss and the twelve COCO scores."""
        self._log_scores("test", self.test_loss)

    def configure_optimizers(self) -> dict:
        """Return AdamW and its learning rate schedule, as the dictionary that Lightning expects."""
        return self.optimisation.configure(self.model, self.trainer, self.model.backbone)

    def configure_callbacks(self) -> list[Callback]:
        """Return a list with the callback that averages the weights. The list is empty if ``ema_decay`` is 0."""
        return self.optimisation.callbacks()

    @property
    def label(self) -> str:
        """Short name for tables and folders: the names of detector, backbone and ablations, joined by hyphens."""
        return model_label(self.hparams)

    @property
    def category_ids(self) -> list[int]:
        """List with the COCO category id of each class, in the order of the labels.

        Detection results in COCO format contain these ids. Without the option ``category_ids``, they are 1, 2, 3 and so
        on.
        """
        return category_ids(self.hparams)

    @property
    def curves(self) -> dict[str, tuple[str, ...]]:
        """Dictionary from the title of each subplot of ``curves.png`` to the names of its metrics.

        The training loss of E2E-MF with a dense head has terms that the validation loss lacks. The two losses are then
        not comparable and have their own subplots.
        """
        losses = {"loss": ("train/loss", "val/loss")}
        if self.hparams.dense_head and self.hparams.name in E2E_VARIANTS:
            losses = {"training loss, with the dense head": ("train/loss",), "validation loss": ("val/loss",)}
        return losses | {
            "terms of the training loss": ("train/loss_ce", "train/loss_bbox", "train/loss_giou"),
            "average precision": ("val/AP", "val/AP50", "val/AP75"),
        }

    def describe(self) -> str:
        """Return one line with the short name of the model and its number of parameters in millions."""
        return f"{self.label}: {sum(p.numel() for p in self.model.parameters()) / 1e6:.2f} M parameters"

    def draw_results(self, folder: Path, datamodule: DetectionData) -> None:
        """Write the files ``ap.json`` and ``predictions.png`` to a folder, and print the AP of each class.

        ``ap.json`` contains the scores of the last evaluation. ``predictions.png`` shows a few validation images, each
        with its true boxes and with the detected boxes.
        """
        self.write_scores(folder / "ap.json")
        self.print_classes()
        dataset = datamodule.val_set
        samples = [dataset[index] for index in indices_to_look_at(dataset.source, _SHEET_IMAGES)]
        mean, std = datamodule.hparams.mean, datamodule.hparams.std
        images = [sample["image"] for sample in samples]
        detections = [self.detect([image], [image.shape[1:]], mean, std)[0] for image in images]
        draw_comparison(
            [image.permute(1, 2, 0).numpy() for image in images],
            [sample["target"] for sample in samples],
            detections,
            self.hparams.class_names,
            folder / "predictions.png",
            threshold=SHEET_THRESHOLD,
        )

    def detect(
        self, images: Sequence[Tensor], sizes: Sequence[tuple[int, int]], mean: Sequence[float], std: Sequence[float]
    ) -> list[dict[str, Tensor]]:
        """Detect objects in images that were resized by :func:`detection.transforms.eval_transform`.

        Args:
            images: list of images of any sizes, each ``(3, H, W)`` uint8.
            sizes: list with a tuple (height, width) for each image, usually its original size. Boxes are scaled to this
                size.
            mean: mean of each channel for the normalisation, in 0..1.
            std: standard deviation of each channel for the normalisation, in 0..1.

        Returns:
            List with one dictionary for each image, on the CPU: ``boxes`` ``(n, 4)``, xyxy in pixels of the image size
            in ``sizes``, ``scores`` ``(n,)`` and ``labels`` ``(n,)``. Detections are sorted by descending score.
        """
        was_training = self.training
        self.eval()
        detections = detect(self.model, images, sizes, mean, std)
        self.train(was_training)
        return detections

    def write_scores(self, path: Path) -> None:
        """Write the scores of the last evaluation to a JSON file: the COCO scores and the AP of each class."""
        path.write_text(json.dumps(self.scores | {"per_class": self.per_class}, indent=2, ensure_ascii=False) + "\n")

    def print_scores(self, title: str) -> None:
        """Print a table with the given title. It contains the twelve COCO scores of the last evaluation."""
        table = Table(title=escape(title), title_justify="left", show_header=False)
        for name in NUMBERS:
            table.add_row(name, figure(self.scores[name]))
        console().print(table)

    def print_classes(self, most: int = 30) -> None:
        """Print a table of the classes and their AP in the last evaluation, lowest AP first.

        Classes without objects come last. The table has at most ``most`` rows.
        """
        rows = sorted(self.per_class.items(), key=lambda row: row[1])
        rows = [row for row in rows if row[1] >= 0] + [row for row in rows if row[1] < 0]
        title = "AP by class" + (f" (the lowest {most} of {len(rows)})" if len(rows) > most else "")
        table = Table("class", "AP", title=title, title_justify="left")
        for name, value in rows[:most]:
            table.add_row(escape(name), figure(value))
        console().print(table)

    def _evaluate(self, batch: dict, mean_loss: MeanMetric) -> None:
        outputs = self.model(batch["image"], batch["padding_mask"])
        if self.annotated:
            loss = self.model.loss(outputs, batch["targets"])["total"]
            mean_loss.update(loss, weight=len(batch["image"]))
        detections = self.model.postprocess(outputs, batch["image_sizes"].tolist())
        self.average_precision.update(detections, batch["image_ids"])

    def _log_scores(self, stage: str, mean_loss: MeanMetric) -> None:
        if not self.annotated:
            return
        values = self.average_precision.compute()
        self.per_class = values.pop("per_class")
        self.scores = values
        # The metrics have been gathered over processes. Without sync_dist Lightning would warn.
        self.log(f"{stage}/loss", mean_loss.compute(), sync_dist=True)
        for name, value in values.items():
            self.log(f"{stage}/{name}", value, prog_bar=name in {"AP", "AP50"}, sync_dist=True)
        mean_loss.reset()


def _batch_norms(module: nn.Module) -> list[nn.BatchNorm2d]:
    return [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
