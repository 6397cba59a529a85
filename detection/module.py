"""The LightningModule of detection."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from pytorch_lightning import Callback, LightningModule
from rich.markup import escape
from rich.table import Table
from torch import Tensor, nn
from torchmetrics import MeanMetric

import mobile_former
from detection.data.batch import pad
from detection.data.module import DetectionData
from detection.evaluation import NUMBERS, CocoAP
from detection.models.ablation import ablate
from detection.models.factory import create_detector
from detection.models.variants import E2E_VARIANTS
from detection.models.weights import load_detector_weights
from detection.pictures import draw_comparison
from mobile_former.ablation import ablation_names
from mobile_former.errors import InputError
from mobile_former.training.baselines import is_baseline
from mobile_former.training.console import console
from mobile_former.training.data.dataset import indices_to_look_at
from mobile_former.training.data.images import normalise
from mobile_former.training.optimisation import Optimisation
from mobile_former.training.run.report import figure

SHEET_THRESHOLD = 0.3  # minimum score of detections on predictions.png
_SHEET_IMAGES = 8


class DetectionModule(LightningModule):
    """LightningModule that trains and evaluates a detector.

    Args:
        class_names: class names in the order of the labels.
        name: name of a detector, see :func:`detection.list_detectors`.
        backbone: name of a backbone that replaces the detector's own: another Mobile-Former, or, with the extra
            "baselines", timm/NAME or transformers/resnet18 to 101.
        pretrained: weights file to start from. The file of a classifier (the authors' or this project's) gives only the
            backbone. The file of a detector of this project may have the same or other classes.
        ablation: parts to leave out, separated by commas, see :func:`detection.models.ablation.ablate`.
        focal: predict classes by sigmoids with focal loss, instead of a softmax with the class "no object". Only E2E-MF
            uses focal, refine_boxes, dense_head and choose_queries.
        refine_boxes: let each block correct the boxes of the previous block, and queries attend around their boxes.
        dense_head: in training, predict at every position of the feature maps too. The backbone then learns faster.
        choose_queries: start queries from the best positions of the dense head. The dense head then also runs in
            inference.
        learning_rate: peak learning rate.
        backbone_learning_rate: peak learning rate of the backbone. Default: learning_rate.
        learning_rate_batch: total batch size that the learning rates are meant for. The learning rates are scaled in
            proportion to the total batch size of the run. Default: no scaling.
        weight_decay: weight decay of all parameters except biases and norms.
        warmup_epochs: epochs in which the learning rates rise.
        milestones: epochs at which the learning rates fall to a tenth. Default: cosine decay to 0.
        ema_decay: decay of an exponential moving average of the weights. The average is evaluated and saved instead of
            the weights. 0: no average.
        freeze_batch_norm: keep the BatchNorms of the backbone fixed, as is usual with small batches and a pretrained
            backbone.
        checkpoint_gradients: recompute blocks in the backward pass. This takes less memory and more time. Only for
            Mobile-Former backbones.
        category_ids: COCO category ids in the order of the labels, for detection results.

    Raises:
        InputError: the name is unknown, a value is out of range, or the weights file does not fit.
        FileNotFoundError: the weights file does not exist.
    """

    monitor = "val/AP"
    architecture = ("name", "backbone", "ablation", "focal", "refine_boxes", "dense_head", "choose_queries")
    curves = {  # noqa: RUF012
        "loss": ("train/loss", "val/loss"),
        "terms of the loss": ("train/loss_ce", "train/loss_bbox", "train/loss_giou"),
        "average precision": ("val/AP", "val/AP50", "val/AP75"),
    }

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
        self.scores: dict[str, float] = {}  # of the last evaluation
        self.per_class: dict[str, float] = {}
        self.train()  # Lightning keeps this mode, with frozen BatchNorms in evaluation mode

    def _build_model(self, pretrained: str | None) -> nn.Module:
        options = self.hparams
        # Other detectors ignore the options of E2E-MF, so that one config serves all.
        parts = ("focal", "refine_boxes", "dense_head", "choose_queries") if options.name in E2E_VARIANTS else ()
        model = create_detector(
            options.name,
            num_classes=len(options.class_names),
            backbone=options.backbone,
            **{name: options[name] for name in parts},
        )
        if is_baseline(model.backbone_name):
            for name in ("ablation", "checkpoint_gradients"):
                if options[name]:
                    raise InputError(
                        f"--model.{name} is for Mobile-Former, not for {model.backbone_name}: leave it out"
                    )
        if options.ablation is not None:
            ablate(model, options.ablation)
        if pretrained is not None:
            load_detector_weights(model, pretrained)
        if options.freeze_batch_norm:
            for norm in _batch_norms(model.backbone):
                norm.requires_grad_(False)
        if options.checkpoint_gradients:
            mobile_former.checkpoint_gradients(model)
        return model

    def train(self, mode: bool = True) -> "DetectionModule":
        """Set training mode, except for frozen BatchNorms, which stay in evaluation mode."""
        super().train(mode)
        if self.hparams.freeze_batch_norm:
            for norm in _batch_norms(self.model.backbone):
                norm.eval()
        return self

    def forward(self, images: Tensor, padding_mask: Tensor | None = None) -> dict:
        """Run the detector on normalised images ``(B, 3, H, W)``; see the forward method of the detector."""
        return self.model(images, padding_mask)

    def training_step(self, batch: dict, batch_idx: int) -> Tensor:
        """Compute and log the losses of a batch."""
        outputs = self.model(batch["image"], batch["padding_mask"])
        losses = self.model.loss(outputs, batch["targets"])
        count = len(batch["image"])
        self.log("train/loss", losses["total"], on_epoch=True, on_step=False, sync_dist=True, batch_size=count)
        self.log("loss", losses["total"], prog_bar=True, batch_size=count)
        for name, value in losses.items():
            if name != "total" and not name[-1].isdigit():  # not those of auxiliary outputs, which are many
                self.log(f"train/{name}", value, on_epoch=True, on_step=False, sync_dist=True, batch_size=count)
                self.log(name.removeprefix("loss_"), value, prog_bar=True, logger=False, batch_size=count)
        self.log("lr", self.lr_schedulers().get_last_lr()[0], batch_size=count)
        return losses["total"]

    def setup(self, stage: str) -> None:
        """Prepare the COCO metric with the ground truth of the data that is scored."""
        data = self.trainer.datamodule
        source = (data.test_set if stage == "test" else data.val_set).source
        self.average_precision = CocoAP(source.ground_truth(), source.category_ids)

    def on_validation_epoch_start(self) -> None:
        """Reset the scores."""
        self.average_precision.reset()

    def validation_step(self, batch: dict, batch_idx: int) -> None:
        """Add the loss and the detections of a batch to the metrics."""
        self._evaluate(batch, self.val_loss)

    def on_validation_epoch_end(self) -> None:
        """Log the loss and the twelve COCO numbers."""
        self._log_scores("val", self.val_loss)

    def on_test_epoch_start(self) -> None:
        """Reset the scores."""
        self.average_precision.reset()

    def test_step(self, batch: dict, batch_idx: int) -> None:
        """Add the loss and the detections of a batch to the metrics."""
        self._evaluate(batch, self.test_loss)

    def on_test_epoch_end(self) -> None:
        """Log the loss and the twelve COCO numbers."""
        self._log_scores("test", self.test_loss)

    def configure_optimizers(self) -> dict:
        """Build AdamW and the learning-rate schedule."""
        return self.optimisation.configure(self.model, self.trainer, self.model.backbone)

    def configure_callbacks(self) -> list[Callback]:
        """Build the callback that averages the weights, if ``ema_decay`` is set."""
        return self.optimisation.callbacks()

    @property
    def label(self) -> str:
        """Short name of the model, for tables and names of folders."""
        ablations = ablation_names(self.hparams.ablation or "")
        return "-".join(filter(None, (self.hparams.name, self.hparams.backbone, *ablations)))

    @property
    def category_ids(self) -> list[int]:
        """COCO category ids in the order of the labels, for detection results. Default: 1, 2, 3, …."""
        return list(self.hparams.category_ids or range(1, len(self.hparams.class_names) + 1))

    def describe(self) -> str:
        """Describe the model in one line."""
        return f"{self.label}: {sum(p.numel() for p in self.model.parameters()) / 1e6:.2f} M parameters"

    def draw_results(self, folder: Path, datamodule: DetectionData) -> None:
        """Write ``ap.json``, print the AP of each class, and draw validation images with objects and detections."""
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

    @torch.inference_mode()
    def detect(
        self, images: Sequence[Tensor], sizes: Sequence[tuple[int, int]], mean: Sequence[float], std: Sequence[float]
    ) -> list[dict[str, Tensor]]:
        """Detect objects in images after :func:`detection.transforms.eval_transform`.

        Args:
            images: images of any sizes, each ``(3, H, W)`` uint8.
            sizes: output height and width of each image, usually the original size. Boxes are scaled to it.
            mean: mean of each channel, in 0..1.
            std: standard deviation of each channel, in 0..1.

        Returns:
            Per image ``boxes`` ``(n, 4)``, xyxy in pixels of the output size, ``scores`` and ``labels`` ``(n,)``, best
            first, on the CPU.
        """
        was_training = self.training
        self.eval()
        batch, padding_mask = pad(list(images))
        batch = normalise(batch.to(self.device), mean, std, self.dtype)
        outputs = self(batch, None if padding_mask is None else padding_mask.to(self.device))
        self.train(was_training)
        return [
            {name: values.cpu() for name, values in found.items()} for found in self.model.postprocess(outputs, sizes)
        ]

    def write_scores(self, path: Path) -> None:
        """Write the COCO numbers and the AP of each class as JSON, from the last evaluation."""
        path.write_text(json.dumps(self.scores | {"per_class": self.per_class}, indent=2, ensure_ascii=False) + "\n")

    def print_scores(self, title: str) -> None:
        """Print the twelve COCO numbers of the last evaluation."""
        table = Table(title=escape(title), title_justify="left", show_header=False)
        for name in NUMBERS:
            table.add_row(name, figure(self.scores[name]))
        console().print(table)

    def print_classes(self, most: int = 30) -> None:
        """Print the AP of at most ``most`` classes, lowest first. Classes without objects come last."""
        rows = sorted(self.per_class.items(), key=lambda row: row[1])
        rows = [row for row in rows if row[1] >= 0] + [row for row in rows if row[1] < 0]
        title = "AP by class" + (f" (the lowest {most} of {len(rows)})" if len(rows) > most else "")
        table = Table("class", "AP", title=title, title_justify="left")
        for name, value in rows[:most]:
            table.add_row(escape(name), figure(value))
        console().print(table)

    def _evaluate(self, batch: dict, mean_loss: MeanMetric) -> None:
        outputs = self.model(batch["image"], batch["padding_mask"])
        loss = self.model.loss(outputs, batch["targets"])["total"]
        mean_loss.update(loss, weight=len(batch["image"]))
        detections = self.model.postprocess(outputs, batch["image_sizes"].tolist())
        self.average_precision.update(detections, batch["image_ids"])

    def _log_scores(self, stage: str, mean_loss: MeanMetric) -> None:
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
