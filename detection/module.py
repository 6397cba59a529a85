"""The LightningModule of detection."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from pytorch_lightning import Callback, LightningModule
from pytorch_lightning.callbacks import EMAWeightAveraging
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
from mobile_former.training.cli.command import console
from mobile_former.training.data.images import normalise
from mobile_former.training.optimisation import adamw, rate_factor, run_length
from mobile_former.training.run.figures import spread
from mobile_former.training.run.report import figure

SHEET_THRESHOLD = 0.3  # score from which the sheet shows detections
_SHEET_IMAGES = 8


class DetectionModule(LightningModule):
    """A detector trained on images with boxes.

    Args:
        class_names: names of the classes in the order of their labels.
        name: one of the detectors, see :func:`detection.list_detectors`.
        backbone: what it has in place of its own: another Mobile-Former by name; or timm/NAME, transformers/resnet18 to
            101, of the optional extra "baselines".
        pretrained: a weights file to start from: a classifier's, the authors' or this project's, of which the backbone
            is taken; or a detector's of this project, with these or other classes.
        ablation: what to leave out, one or several with commas between, see :func:`detection.models.ablation.ablate`.
        focal: classes by sigmoid and focal loss, in place of softmax with "no object". This and the next three are
            E2E-MF's; other detectors take no notice of them.
        refine_boxes: each block corrects the boxes of the one before, and queries look around their boxes.
        dense_head: while training, every position of the maps predicts as well, so that the backbone learns faster.
        choose_queries: queries start from the best positions of the dense head, which then also runs in inference.
        learning_rate: of all but the backbone, at its peak.
        backbone_learning_rate: of the backbone, at its peak; default: that of the rest.
        learning_rate_batch: the total batch that the learning rate is meant for: it is scaled in proportion to that of
            the run, over all processes; default: it is taken as it stands.
        weight_decay: of all but biases and norms.
        warmup_epochs: epochs in which the learning rates rise.
        milestones: epochs at which the learning rates fall to a tenth; default: they fall along a cosine to 0.
        ema_decay: decay of an exponential moving average of the weights, which is then what is evaluated and saved; 0
            leaves it out.
        freeze_batch_norm: leave the backbone's BatchNorms as they are, as is usual where batches are small and the
            backbone is pretrained.
        checkpoint_gradients: keep less of each block while training and compute it anew for the gradients, which takes
            less memory and more time; of Mobile-Former's backbones alone.
        category_ids: what the data calls the classes by, in the order of their labels, for results.

    Raises:
        InputError: unknown name, a number out of range, or a weights file that does not fit.
        FileNotFoundError: no such weights file.
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
        rates = {"learning_rate": learning_rate, "backbone_learning_rate": backbone_learning_rate}
        for option, rate in rates.items():
            if rate is not None and rate <= 0:
                raise InputError(f"--model.{option} is {rate}: give more than 0")
        if learning_rate_batch is not None and learning_rate_batch < 1:
            raise InputError(f"--model.learning_rate_batch is {learning_rate_batch}: give a number of images")
        if weight_decay < 0 or warmup_epochs < 0:
            raise InputError(
                f"--model.weight_decay is {weight_decay}, --model.warmup_epochs {warmup_epochs}: give 0 or more"
            )
        if milestones is not None and (min(milestones, default=1) < 1 or sorted(set(milestones)) != list(milestones)):
            raise InputError(f"--model.milestones is {milestones}: give epochs from 1 in rising order")
        if not 0 <= ema_decay < 1:
            raise InputError(f"--model.ema_decay is {ema_decay}: give 0 (no average) to below 1")
        class_names = list(class_names)
        self.save_hyperparameters(ignore=["pretrained"], logger=False)
        options = {
            "focal": focal,
            "refine_boxes": refine_boxes,
            "dense_head": dense_head,
            "choose_queries": choose_queries,
        }
        if name not in E2E_VARIANTS:
            options = {}  # so that one config serves all
        self.model = create_detector(name, num_classes=len(class_names), backbone=backbone, **options)
        if ablation is not None:
            if is_baseline(self.model.backbone_name):
                raise InputError(f"--model.ablation knows Mobile-Former, not {self.model.backbone_name}: leave it out")
            ablate(self.model, ablation)
        if pretrained is not None:
            load_detector_weights(self.model, pretrained)
        if freeze_batch_norm:
            for norm in self._backbone_norms():
                norm.requires_grad_(False)
        if checkpoint_gradients:
            if is_baseline(self.model.backbone_name):
                raise InputError(
                    f"--model.checkpoint_gradients knows Mobile-Former's blocks, not {self.model.backbone_name}: "
                    "leave it out"
                )
            mobile_former.checkpoint_gradients(self.model)
        self.val_loss, self.test_loss = MeanMetric(), MeanMetric()
        self.average_precision: CocoAP | None = None  # made for the data that is scored
        self.scores: dict[str, float] = {}  # the numbers of the last evaluation
        self.per_class: dict[str, float] = {}
        self.train()  # Lightning keeps the mode it finds; this one leaves frozen BatchNorms in evaluation mode

    def train(self, mode: bool = True) -> "DetectionModule":
        """Set the mode; frozen BatchNorms stay in evaluation mode."""
        super().train(mode)
        if self.hparams.freeze_batch_norm:
            for norm in self._backbone_norms():
                norm.eval()
        return self

    def forward(self, images: Tensor, padding_mask: Tensor | None = None) -> dict:
        """Detect objects in normalised images ``(B, 3, H, W)``."""
        return self.model(images, padding_mask)

    def training_step(self, batch: dict, batch_idx: int) -> Tensor:
        """Detect, match, compare."""
        outputs = self.model(batch["image"], batch["padding_mask"])
        losses = self.model.loss(outputs, batch["targets"])
        count = len(batch["image"])
        self.log("train/loss", losses["total"], on_epoch=True, on_step=False, sync_dist=True, batch_size=count)
        self.log("loss", losses["total"], prog_bar=True, batch_size=count)
        for name, value in losses.items():
            if name != "total" and not name[-1].isdigit():  # those of auxiliary layers would bury the others
                self.log(f"train/{name}", value, on_epoch=True, on_step=False, sync_dist=True, batch_size=count)
                self.log(name.removeprefix("loss_"), value, prog_bar=True, logger=False, batch_size=count)
        self.log("lr", self.lr_schedulers().get_last_lr()[0], batch_size=count)
        return losses["total"]

    def setup(self, stage: str) -> None:
        """Make ready to score the data of a stage, whose ground truth is indexed once."""
        data = self.trainer.datamodule
        source = (data.test_set if stage == "test" else data.val_set).source
        self.average_precision = CocoAP(source.ground_truth(), source.category_ids)

    def on_validation_epoch_start(self) -> None:
        """Forget the scores of the epoch before."""
        self.average_precision.reset()

    def validation_step(self, batch: dict, batch_idx: int) -> None:
        """Detect and count."""
        self._evaluate(batch, self.val_loss)

    def on_validation_epoch_end(self) -> None:
        """Log loss and the twelve COCO numbers."""
        self._log_scores("val", self.val_loss)

    def on_test_epoch_start(self) -> None:
        """Forget the scores of the run before."""
        self.average_precision.reset()

    def test_step(self, batch: dict, batch_idx: int) -> None:
        """Detect and count."""
        self._evaluate(batch, self.test_loss)

    def on_test_epoch_end(self) -> None:
        """Log loss and the twelve COCO numbers."""
        self._log_scores("test", self.test_loss)

    def configure_optimizers(self) -> dict:
        """AdamW, and a schedule by step."""
        factor = rate_factor(self.trainer, self.hparams.learning_rate_batch)
        backbone_rate = self.hparams.backbone_learning_rate or self.hparams.learning_rate
        return adamw(
            self.model,
            learning_rate=self.hparams.learning_rate * factor,
            weight_decay=self.hparams.weight_decay,
            warmup_epochs=self.hparams.warmup_epochs,
            milestones=self.hparams.milestones,
            learning_rates={self.model.backbone: backbone_rate * factor},
            **run_length(self.trainer),
        )

    def configure_callbacks(self) -> list[Callback]:
        """The moving average of the weights, where one is asked for."""
        return [EMAWeightAveraging(decay=self.hparams.ema_decay)] if self.hparams.ema_decay > 0 else []

    @property
    def label(self) -> str:
        """A short name for tables and folders."""
        ablations = ablation_names(self.hparams.ablation or "")
        return "-".join(filter(None, (self.hparams.name, self.hparams.backbone, *ablations)))

    @property
    def category_ids(self) -> list[int]:
        """What results call the classes by, in the order of their labels."""
        return list(self.hparams.category_ids or range(1, len(self.hparams.class_names) + 1))

    def describe(self) -> str:
        """What is trained, in a line."""
        return f"{self.label}: {sum(p.numel() for p in self.model.parameters()) / 1e6:.2f} M parameters"

    def draw_results(self, folder: Path, datamodule: DetectionData) -> None:
        """Write ``ap.json`` and a sheet of validation images with objects and detections; print the classes' AP."""
        self.write_scores(folder / "ap.json")
        self.print_classes()
        dataset = datamodule.val_set
        samples = [dataset[index] for index in spread(len(dataset), _SHEET_IMAGES)]
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
        """Detect objects in images as they come from :func:`detection.transforms.eval_transform`.

        Args:
            images: each ``(3, H, W)`` uint8, of sizes of their own.
            sizes: for each image height and width of the frame in which its boxes are wanted.
            mean: of the channels, in 0..1.
            std: of the channels, in 0..1.

        Returns:
            For each image ``boxes`` ``(n, 4)`` xyxy in that frame, ``scores`` and ``labels`` ``(n,)``, best first, on
            the CPU.
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
        """Write the numbers of the last evaluation, and the AP of each class, as JSON."""
        path.write_text(json.dumps(self.scores | {"per_class": self.per_class}, indent=2, ensure_ascii=False) + "\n")

    def print_scores(self, title: str) -> None:
        """Print the twelve COCO numbers."""
        table = Table(title=escape(title), title_justify="left", show_header=False)
        for name in NUMBERS:
            table.add_row(name, figure(self.scores[name]))
        console().print(table)

    def print_classes(self, most: int = 30) -> None:
        """Print the AP of the classes, the lowest first."""
        rows = sorted(self.per_class.items(), key=lambda row: row[1])
        rows = [row for row in rows if row[1] >= 0] + [row for row in rows if row[1] < 0]
        title = "AP by class" + (f" (the lowest {most} of {len(rows)})" if len(rows) > most else "")
        table = Table("class", "AP", title=title, title_justify="left")
        for name, value in rows[:most]:
            table.add_row(escape(name), figure(value))
        console().print(table)

    def _backbone_norms(self) -> list[nn.Module]:
        return [module for module in self.model.backbone.modules() if isinstance(module, nn.BatchNorm2d)]

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
        # The metrics have gathered over processes already; sync_dist tells Lightning that nothing is forgotten.
        self.log(f"{stage}/loss", mean_loss.compute(), sync_dist=True)
        for name, value in values.items():
            self.log(f"{stage}/{name}", value, prog_bar=name in {"AP", "AP50"}, sync_dist=True)
        mean_loss.reset()
