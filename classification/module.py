"""LightningModule that trains and evaluates a classifier."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from pytorch_lightning import Callback, LightningModule
from torch import Tensor
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from classification.classifier import create_classifier
from classification.data.module import ClassificationData
from classification.mixup import mixup
from classification.pictures import draw_predictions
from mobile_former.ablation import model_label
from mobile_former.errors import InputError
from mobile_former.training.optimisation import Optimisation
from mobile_former.training.run.figures import draw_confusion


class ClassificationModule(LightningModule):
    """LightningModule that trains and evaluates Mobile-Former or a classifier of another library.

    Args:
        class_names: class names in the order of the labels.
        name: name of a published Mobile-Former. With the pip extra "baselines", also a model of another library:
            timm/NAME, transformers/resnetN with N = 18, 34, 50 or 101, or transformers/mobilenet_v2_M with the width
            multiplier M, such as 1.0.
        pretrained: weights file to start from: a path, hf://owner/name, or an https:// URL that ends in #sha256=… (the
            SHA-256 of the file). For Mobile-Former, it is a checkpoint of the paper's authors,
            a checkpoint of this project or a safetensors file. For a model of timm or transformers, the tensors in the
            file have the library's own names. Default: random weights.
        ablation: names of ablations, separated by commas, see :func:`mobile_former.ablation.ablate`. Each ablation
            removes or replaces a part of Mobile-Former. Default: none.
        dropout: dropout rate before the last linear layer.
        drop_path: stochastic depth rate of the last block.
        learning_rate: peak learning rate. It is reached after the warm-up and then falls along a cosine to 0.
        learning_rate_batch: total batch size (all images per optimiser step) to which learning_rate applies. If a run
            has another total batch size, its learning rate is scaled in proportion. Default: no scaling.
        weight_decay: weight decay of all parameters except biases and norm layers.
        warmup_epochs: number of epochs at the start during which the learning rate rises.
        label_smoothing: fraction of the target that is spread over all classes, from 0 to below 1.
        mixup_alpha: parameter of mixup's Beta distribution. 0: no mixup.
        ema_decay: decay of an exponential moving average of the weights. The average is evaluated and saved instead of
            the weights. 0: no average.
        freeze_backbone: train only the classifier that follows the backbone.
        checkpoint_gradients: store only some activations in training, and compute the others again in the backward
            pass. This takes less memory and more time. Only for Mobile-Former.
        image_size: side of the images in pixels. Only models of timm that take images of one size use it, such as
            LeViT. Default: timm's choice.

    Raises:
        InputError: the model is unknown, a value is out of range, an option does not apply to the model, or a weights
            file does not fit.
        FileNotFoundError: the weights file does not exist.
    """

    monitor = "val/top1"
    architecture = ("name", "ablation")
    curves = {"loss": ("train/loss", "val/loss"), "accuracy": ("train/top1", "val/top1", "val/top5")}  # noqa: RUF012

    def __init__(
        self,
        class_names: list[str],
        name: str = "mobile_former_294m",
        pretrained: str | None = None,
        ablation: str | None = None,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        learning_rate: float = 1e-3,
        learning_rate_batch: int | None = None,
        weight_decay: float = 0.05,
        warmup_epochs: float = 0.0,
        label_smoothing: float = 0.0,
        mixup_alpha: float = 0.0,
        ema_decay: float = 0.0,
        freeze_backbone: bool = False,
        checkpoint_gradients: bool = False,
        image_size: int | None = None,
    ):
        super().__init__()
        _require_valid_targets(class_names, label_smoothing, mixup_alpha)
        self.optimisation = Optimisation(
            learning_rate,
            learning_rate_batch=learning_rate_batch,
            weight_decay=weight_decay,
            warmup_epochs=warmup_epochs,
            ema_decay=ema_decay,
        )
        class_names = list(class_names)  # checkpoints hold plain types
        self.save_hyperparameters(ignore=["pretrained"], logger=False)
        count = len(class_names)
        options = {"dropout": dropout, "drop_path": drop_path, "checkpoint_gradients": checkpoint_gradients}
        model = create_classifier(
            name, count, ablation=ablation, pretrained=pretrained, image_size=image_size, **options
        )
        self.model = model.to(memory_format=torch.channels_last)
        if freeze_backbone:
            if not hasattr(model, "backbone"):
                raise InputError(f"--model.freeze_backbone: {name} has no separate backbone; leave it out")
            model.backbone.requires_grad_(False)
        self.train_top1 = MulticlassAccuracy(count, average="micro")
        self.val_metrics = _metrics(count, prefix="val/")
        self.test_metrics = _metrics(count, prefix="test/")
        self.val_loss, self.test_loss = MeanMetric(), MeanMetric()
        self.train()  # Lightning keeps the current mode; a frozen backbone must be in evaluation mode

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits ``(B, K)`` of normalised images ``(B, 3, H, W)``."""
        return self.model(images.contiguous(memory_format=torch.channels_last))

    def training_step(self, batch: dict, batch_idx: int) -> Tensor:
        """Compute, log and return the loss of a batch. If mixup is enabled, it is applied to the batch first."""
        images, labels = batch["image"], batch["label"]
        targets = labels
        if self.hparams.mixup_alpha > 0:
            # The weights depend only on the seed and the batch's position, so that a resumed run draws the same ones.
            position = (self.trainer.current_epoch, batch_idx, self.global_rank)
            generator = np.random.default_rng([torch.initial_seed() % 2**64, *position])
            images, targets = mixup(images, labels, len(self.hparams.class_names), self.hparams.mixup_alpha, generator)
        logits = self(images)
        loss = F.cross_entropy(logits, targets, label_smoothing=self.hparams.label_smoothing)
        self.train_top1(logits, labels)
        self.log("train/loss", loss, on_epoch=True, on_step=False, sync_dist=True, batch_size=len(images))
        self.log("train/top1", self.train_top1, on_epoch=True, on_step=False, batch_size=len(images))
        self.log("loss", loss, prog_bar=True, batch_size=len(images))
        self.log("lr", self.lr_schedulers().get_last_lr()[0], batch_size=len(images))
        return loss

    def validation_step(self, batch: dict, batch_idx: int) -> None:
        """Classify a batch, and update the metrics with its loss and predictions."""
        self._evaluate(batch, self.val_metrics, self.val_loss)

    def on_validation_epoch_end(self) -> None:
        """Log the mean loss, the top-1 accuracy and the top-5 accuracy."""
        self._log_scores(self.val_metrics, self.val_loss)

    def test_step(self, batch: dict, batch_idx: int) -> None:
        """Classify a batch, and update the metrics with its loss and predictions."""
        self._evaluate(batch, self.test_metrics, self.test_loss)

    def on_test_epoch_end(self) -> None:
        """Log the mean loss, the top-1 accuracy and the top-5 accuracy."""
        self._log_scores(self.test_metrics, self.test_loss)

    def configure_optimizers(self) -> dict:
        """Return AdamW and its learning rate schedule, as the dictionary that Lightning expects.

        The learning rate rises during the warm-up and then falls along a cosine. It changes at each optimiser step.
        """
        return self.optimisation.configure(self.model, self.trainer)

    def configure_callbacks(self) -> list[Callback]:
        """Return a list with the callback that averages the weights. The list is empty if ``ema_decay`` is 0."""
        return self.optimisation.callbacks()

    def train(self, mode: bool = True) -> "ClassificationModule":
        """Switch between training and evaluation mode.

        A frozen backbone always stays in evaluation mode, so that its BatchNorm statistics do not change.
        """
        super().train(mode)
        if self.hparams.freeze_backbone:
            self.model.backbone.eval()
        return self

    @property
    def label(self) -> str:
        """Short name for tables and folders: the names of the model and of its ablations, joined by hyphens."""
        return model_label(self.hparams)

    def describe(self) -> str:
        """Return one line with the short name of the model and its number of trainable parameters in millions."""
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        return f"{self.label}: {trained / 1e6:.2f} M trained parameters"

    def draw_results(self, folder: Path, datamodule: ClassificationData) -> None:
        """Write ``confusion_matrix.png`` and ``predictions.png`` to a folder.

        The first file shows the confusion matrix of the last evaluation. The second file shows some validation images
        with their predicted classes.
        """
        draw_confusion(self.confusion, self.hparams.class_names, folder / "confusion_matrix.png")
        draw_predictions(self, datamodule, folder / "predictions.png")

    def _evaluate(self, batch: dict, metrics: MetricCollection, mean_loss: MeanMetric) -> None:
        logits = self(batch["image"])
        mean_loss.update(F.cross_entropy(logits, batch["label"]), weight=len(logits))
        metrics.update(logits, batch["label"])

    def _log_scores(self, metrics: MetricCollection, mean_loss: MeanMetric) -> None:
        values, prefix = metrics.compute(), metrics.prefix
        # The metrics are already reduced over processes; sync_dist only avoids a warning of Lightning.
        self.log(f"{prefix}loss", mean_loss.compute(), sync_dist=True)
        self.log(f"{prefix}top1", values[f"{prefix}top1"], prog_bar=True, sync_dist=True)
        self.log(f"{prefix}top5", values[f"{prefix}top5"], sync_dist=True)
        self.per_class = values[f"{prefix}per_class"].cpu().numpy()
        self.confusion = values[f"{prefix}confusion"].cpu().numpy()
        metrics.reset()
        mean_loss.reset()


def _require_valid_targets(class_names: Sequence[str], label_smoothing: float, mixup_alpha: float) -> None:
    if len(class_names) < 2:
        raise InputError(f"a classifier needs at least 2 classes, but class_names has {len(class_names)}")
    if mixup_alpha < 0:
        raise InputError(f"--model.mixup_alpha is {mixup_alpha}: give 0 (no mixup) or more")
    if not 0 <= label_smoothing < 1:
        raise InputError(f"--model.label_smoothing is {label_smoothing}: give a fraction from 0 to below 1")


def _metrics(num_classes: int, *, prefix: str) -> MetricCollection:
    metrics = {
        "top1": MulticlassAccuracy(num_classes, average="micro"),
        "top5": MulticlassAccuracy(num_classes, average="micro", top_k=min(5, num_classes)),
        "per_class": MulticlassAccuracy(num_classes, average=None),
        "confusion": MulticlassConfusionMatrix(num_classes),
    }
    return MetricCollection(metrics, prefix=prefix, compute_groups=False)
