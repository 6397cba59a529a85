"""LightningModule that trains and evaluates a classifier."""

import logging
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from pytorch_lightning import Callback, LightningModule
from torch import Tensor
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassAUROC,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
    MulticlassPrecision,
    MulticlassRecall,
)

from classification.classifier import create_classifier
from classification.data.mixup import cutmix, mixup
from classification.data.module import ClassificationData
from classification.pictures import draw_predictions
from mobile_former.ablation import model_label
from mobile_former.errors import InputError
from mobile_former.training.optimisation import Optimisation
from mobile_former.training.run.figures import draw_confusion

_logger = logging.getLogger(__name__)

_PER_CLASS = ("precision", "recall", "f1", "roc_auc")
_ROC_CLASSES = 100  # classes; with more, ROC-AUC is left out, because it stores all probabilities of all images


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
        learning_rate_batch: total batch size (all images per optimiser step) to which ``learning_rate`` applies. If a
            run has another total batch size, its learning rate is scaled in proportion. Default: no scaling.
        weight_decay: weight decay of all parameters except biases and norm layers.
        warmup_epochs: number of epochs at the start during which the learning rate rises.
        label_smoothing: fraction of the target that is spread over all classes, from 0 to below 1.
        class_weights: weight of each class in the training loss. "balanced": N / (K n) for a class with n images, where
            N is the number of training images and K the number of classes. All classes then have the same total weight,
            as in scikit-learn (King and Zeng, Logistic Regression in Rare Events Data, 2001). Or a list of numbers in
            the order of ``class_names``. Default: all weights are 1.
        mixup_alpha: parameter of mixup's Beta distribution. 0: no mixup.
        cutmix_alpha: parameter of CutMix's Beta distribution. 0: no CutMix. If mixup_alpha is above 0 too, each batch
            is mixed by one of the two, with equal probability.
        ema_decay: decay of an exponential moving average of the weights. The average is evaluated and saved instead of
            the weights. 0: no average.
        freeze_backbone: train only the classifier that follows the backbone.
        checkpoint_gradients: store only some activations in training, and compute the others again in the backward
            pass. This takes less memory and more time. Only for Mobile-Former.
        image_size: side of the images in pixels. It only affects timm models that are built for one image size, such as
            LeViT. Default: timm's choice.

    Raises:
        InputError: the model is unknown, a value is out of range, an option does not apply to the model, or a weights
            file does not fit.
        FileNotFoundError: the weights file does not exist.
    """

    monitor = "val/top1"
    architecture = ("name", "ablation")

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
        class_weights: Literal["balanced"] | list[float] | None = None,
        mixup_alpha: float = 0.0,
        cutmix_alpha: float = 0.0,
        ema_decay: float = 0.0,
        freeze_backbone: bool = False,
        checkpoint_gradients: bool = False,
        image_size: int | None = None,
    ):
        super().__init__()
        _require_valid_targets(class_names, label_smoothing, class_weights, mixup_alpha, cutmix_alpha)
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
        # "balanced": set when training starts
        weights = torch.ones(count) if class_weights == "balanced" else torch.tensor(class_weights or [])
        self.register_buffer("class_weight", weights if class_weights else None, persistent=False)
        self.train_top1 = MulticlassAccuracy(count, average="micro")
        self.val_metrics = MetricCollection(_metrics(count), prefix="val/", compute_groups=False)
        self.test_metrics = MetricCollection(
            _metrics(count) | _test_metrics(count), prefix="test/", compute_groups=False
        )
        self.val_loss, self.test_loss = MeanMetric(), MeanMetric()
        self.train()  # Lightning keeps the current mode; a frozen backbone must be in evaluation mode

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits ``(B, K)`` of normalised images ``(B, 3, H, W)``."""
        return self.model(images.contiguous(memory_format=torch.channels_last))

    def on_fit_start(self) -> None:
        """Compute and print the class weights, if ``class_weights`` is ``"balanced"``.

        Warn if the sampler of the training images balances the classes too.
        """
        balanced = getattr(self.trainer.datamodule, "class_balance", 0) > 0
        if self.hparams.class_weights and balanced and self.trainer.is_global_zero:
            _logger.warning(
                "--model.class_weights and --data.class_balance both raise the share of rare classes in the loss: "
                "leave one out"
            )
        if self.hparams.class_weights == "balanced":
            counts = torch.from_numpy(self.trainer.datamodule.class_counts())
            self.class_weight.copy_(counts.sum() / (len(counts) * counts.clamp(min=1)))
            if self.trainer.is_global_zero:
                ends = [int(index) for index in (self.class_weight.argmin(), self.class_weight.argmax())]
                named = (f"{self.class_weight[end]:.3g} ({self.hparams.class_names[end]})" for end in ends)
                print(f"loss   class weights from {' to '.join(named)}")

    def training_step(self, batch: dict, batch_idx: int) -> Tensor:
        """Compute, log and return the loss of a batch. If mixup or CutMix is enabled, it is applied first."""
        images, labels = batch["image"], batch["label"]
        mixed = self._mixes
        targets = labels
        if mixed:
            images, targets = self._mix(images, labels, batch_idx)
        logits = self(images)
        if self.class_weight is not None and not mixed:
            # With class indices, PyTorch divides by the sum of the batch's weights. A class would then have other
            # weights in other batches and on other numbers of processes.
            targets = F.one_hot(labels, logits.shape[1]).to(logits.dtype)
        weight = None if self.class_weight is None else self.class_weight.to(logits.dtype)
        loss = F.cross_entropy(logits, targets, weight, label_smoothing=self.hparams.label_smoothing)
        self._log_mean("train/loss", loss, labels)
        if not mixed:
            self.train_top1(logits, labels)
            self._log_mean("train/top1", self.train_top1, labels)
            if self._has_other_loss:
                self._log_mean("train/cross_entropy", F.cross_entropy(logits.detach(), labels), labels)
        self.log("loss", loss, prog_bar=True, batch_size=len(images))
        self.log_dict(self.optimisation.rates(self.trainer), batch_size=len(images))
        return loss

    def validation_step(self, batch: dict, batch_idx: int) -> None:
        """Classify a batch, and update the metrics with its loss and predictions."""
        self._evaluate(batch, self.val_metrics, self.val_loss)

    def on_validation_epoch_end(self) -> None:
        """Log the mean loss, top-1 accuracy, top-5 accuracy (only with six or more classes) and balanced accuracy."""
        self._log_scores(self.val_metrics, self.val_loss)

    def test_step(self, batch: dict, batch_idx: int) -> Tensor:
        """Classify a batch, update the metrics, and return the class probabilities ``(B, K)``."""
        return self._evaluate(batch, self.test_metrics, self.test_loss)

    def on_test_epoch_end(self) -> None:
        """Log the same scores as in validation, and precision, recall, F1 and ROC-AUC as means over all classes."""
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

    @property
    def curves(self) -> dict[str, tuple[str, ...]]:
        """Dictionary from the title of each subplot of ``curves.png`` to the names of its metrics.

        Losses share a subplot only if they can be compared. The validation loss is the plain cross-entropy. If label
        smoothing or class weights change the training loss, the training loss has its own subplot, and the plain
        cross-entropy of the training images is drawn beside the validation loss. With mixup or CutMix, neither the
        plain cross-entropy nor the accuracy of the training images is known.
        """
        options = self.hparams
        changes = {
            "mixup": options.mixup_alpha,
            "CutMix": options.cutmix_alpha,
            "label smoothing": options.label_smoothing,
            "class weights": options.class_weights,
        }
        used = " + ".join(name for name, value in changes.items() if value)
        if not used:
            return {"loss": ("train/loss", "val/loss"), "accuracy": ("train/top1", "val/top1", "val/top5")}
        compared = ("val/loss",) if self._mixes else ("train/cross_entropy", "val/loss")
        accuracies = ("val/top1", "val/top5") if self._mixes else ("train/top1", "val/top1", "val/top5")
        return {"cross-entropy": compared, f"loss with {used}": ("train/loss",), "accuracy": accuracies}

    def describe(self) -> str:
        """Return one line with the short name of the model and its number of trainable parameters in millions."""
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        return f"{self.label}: {trained / 1e6:.2f} M trained parameters"

    def draw_results(self, folder: Path, datamodule: ClassificationData) -> None:
        """Write ``confusion_matrix.png`` and ``predictions.png`` to a folder.

        The first file shows the confusion matrix of the last evaluation. The second file shows up to 24 validation
        images with their predicted classes.
        """
        draw_confusion(self.confusion, self.hparams.class_names, folder / "confusion_matrix.png")
        draw_predictions(self, datamodule, folder / "predictions.png")

    @property
    def _mixes(self) -> bool:
        """Whether mixup or CutMix is applied to the training images."""
        return self.hparams.mixup_alpha > 0 or self.hparams.cutmix_alpha > 0

    @property
    def _has_other_loss(self) -> bool:
        """Whether label smoothing or class weights make the training loss differ from the plain cross-entropy."""
        return self.hparams.label_smoothing > 0 or self.hparams.class_weights is not None

    def _mix(self, images: Tensor, labels: Tensor, batch_idx: int) -> tuple[Tensor, Tensor]:
        # The numbers depend only on the seed and the batch's position, so that a resumed run draws the same ones.
        position = (self.trainer.current_epoch, batch_idx, self.global_rank)
        generator = np.random.default_rng([torch.initial_seed() % 2**64, *position])
        methods = [(mixup, self.hparams.mixup_alpha), (cutmix, self.hparams.cutmix_alpha)]
        methods = [(method, alpha) for method, alpha in methods if alpha > 0]
        method, alpha = methods[generator.integers(2) if len(methods) == 2 else 0]
        return method(images, labels, len(self.hparams.class_names), alpha, generator)

    def _log_mean(self, name: str, value: Tensor | Metric, labels: Tensor) -> None:
        self.log(name, value, on_epoch=True, on_step=False, sync_dist=True, batch_size=len(labels))

    def _evaluate(self, batch: dict, metrics: MetricCollection, mean_loss: MeanMetric) -> Tensor:
        logits = self(batch["image"])
        mean_loss.update(F.cross_entropy(logits, batch["label"]), weight=len(logits))
        probabilities = logits.float().softmax(1)
        metrics.update(probabilities, batch["label"])
        return probabilities

    def _log_scores(self, metrics: MetricCollection, mean_loss: MeanMetric) -> None:
        prefix = metrics.prefix
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="No (positive|negative) samples")  # left out below
            values = {name.removeprefix(prefix): value for name, value in metrics.compute().items()}
        self.confusion = values.pop("confusion").cpu().numpy()
        images = self.confusion.sum(1)
        # An area under the curve needs images of the class and of others. Other scores need images of the class.
        defined = {name: (images > 0) & (images < images.sum() if name == "roc_auc" else True) for name in _PER_CLASS}
        self.per_class = {
            name: np.where(defined[name], values.pop(name).cpu().numpy(), np.nan)
            for name in _PER_CLASS
            if name in values
        }
        # The metrics are already reduced over processes; sync_dist only avoids a warning of Lightning.
        self.log(f"{prefix}loss", mean_loss.compute(), sync_dist=True)
        for name, value in values.items():
            self.log(f"{prefix}{name}", value, prog_bar=name == "top1", sync_dist=True)
        means = {name: scores[defined[name]] for name, scores in self.per_class.items()}
        means = {"balanced_accuracy": means["recall"]} | (means if metrics is self.test_metrics else {})
        for name, scores in means.items():
            if len(scores):
                self.log(f"{prefix}{name}", float(scores.mean()), sync_dist=True)
        metrics.reset()
        mean_loss.reset()


def _require_valid_targets(
    class_names: Sequence[str],
    label_smoothing: float,
    class_weights: str | Sequence[float] | None,
    mixup_alpha: float,
    cutmix_alpha: float,
) -> None:
    count = len(class_names)
    if count < 2:
        raise InputError(f"a classifier needs at least 2 classes, but class_names has {count}")
    for name, alpha in (("mixup", mixup_alpha), ("cutmix", cutmix_alpha)):
        if alpha < 0:
            raise InputError(f"--model.{name}_alpha is {alpha}: give 0 (no {name}) or more")
    if isinstance(class_weights, list) and len(class_weights) != count:
        raise InputError(
            f"--model.class_weights has {len(class_weights)} numbers: give one for each of the {count} classes, in the "
            f"order {', '.join(class_names[:5])}{', …' * (count > 5)}"
        )
    if isinstance(class_weights, list) and not (min(class_weights) >= 0 and 0 < sum(class_weights) < math.inf):
        raise InputError(f"--model.class_weights is {class_weights}: give finite weights of 0 or more, not all 0")
    if not 0 <= label_smoothing < 1:
        raise InputError(f"--model.label_smoothing is {label_smoothing}: give a fraction from 0 to below 1")


def _metrics(num_classes: int) -> dict[str, Metric]:
    metrics = {
        "top1": MulticlassAccuracy(num_classes, average="micro"),
        "recall": MulticlassRecall(num_classes, average=None),
        "confusion": MulticlassConfusionMatrix(num_classes),
    }
    if num_classes > 5:
        metrics["top5"] = MulticlassAccuracy(num_classes, average="micro", top_k=5)
    return metrics


def _test_metrics(num_classes: int) -> dict[str, Metric]:
    metrics = {
        "precision": MulticlassPrecision(num_classes, average=None),
        "f1": MulticlassF1Score(num_classes, average=None),
    }
    if num_classes <= _ROC_CLASSES:
        metrics["roc_auc"] = MulticlassAUROC(num_classes, average=None)
    return metrics
