"""The LightningModule of classification."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from pytorch_lightning import Callback, LightningModule
from pytorch_lightning.callbacks import EMAWeightAveraging
from torch import Tensor
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

import mobile_former
from classification.baselines import create_baseline
from classification.data.module import ClassificationData
from classification.mixup import mixup
from classification.pictures import draw_predictions
from mobile_former.ablation import ablate, ablation_names
from mobile_former.errors import InputError
from mobile_former.training.baselines import is_baseline
from mobile_former.training.optimisation import adamw, rate_factor, run_length
from mobile_former.training.run.figures import draw_confusion


class ClassificationModule(LightningModule):
    """Mobile-Former, or another library's classifier, trained by the published recipe.

    Args:
        class_names: names of the classes in the order of their labels.
        name: one of the published models; or timm/NAME, transformers/mobilenet_v2_1.0 (or another multiplier),
            transformers/resnet18 to 101, of the optional extra "baselines".
        pretrained: a weights file to start from: the authors', this project's, safetensors; of another library's model
            one in its own layout.
        ablation: what to leave out of Mobile-Former, one or several with commas between, see
            :func:`mobile_former.ablation.ablate`.
        dropout: rate before the last linear.
        drop_path: stochastic depth's rate at the last block.
        learning_rate: the peak, reached after the warm-up, from where it falls along a cosine to 0.
        learning_rate_batch: the total batch that the learning rate is meant for: it is scaled in proportion to that of
            the run, over all processes; default: it is taken as it stands.
        weight_decay: of all but biases and norms.
        warmup_epochs: epochs in which the learning rate rises.
        label_smoothing: share of the target spread over all classes, in 0..1.
        mixup_alpha: of mixup's Beta distribution; 0 leaves mixup out.
        ema_decay: decay of an exponential moving average of the weights, which is then what is evaluated and saved; 0
            leaves it out.
        freeze_backbone: train the classifier alone.
        checkpoint_gradients: keep less of each block while training and compute it anew for the gradients, which takes
            less memory and more time; of Mobile-Former alone.

    Raises:
        InputError: unknown name, a number out of range, or a weights file that does not fit.
        FileNotFoundError: no such weights file.
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
    ):
        super().__init__()
        if len(class_names) < 2:
            raise InputError(f"a classifier tells two classes or more apart, and {len(class_names)} is given")
        if learning_rate <= 0:
            raise InputError(f"--model.learning_rate is {learning_rate}: give more than 0")
        if learning_rate_batch is not None and learning_rate_batch < 1:
            raise InputError(f"--model.learning_rate_batch is {learning_rate_batch}: give a number of images")
        if weight_decay < 0 or warmup_epochs < 0:
            raise InputError(
                f"--model.weight_decay is {weight_decay}, --model.warmup_epochs {warmup_epochs}: give 0 or more"
            )
        if mixup_alpha < 0:
            raise InputError(f"--model.mixup_alpha is {mixup_alpha}: give 0 (no mixup) or more")
        if not 0 <= label_smoothing < 1:
            raise InputError(f"--model.label_smoothing is {label_smoothing}: give a share from 0 to below 1")
        if not 0 <= ema_decay < 1:
            raise InputError(f"--model.ema_decay is {ema_decay}: give 0 (no average) to below 1")
        class_names = list(class_names)
        self.save_hyperparameters(ignore=["pretrained"], logger=False)
        options = {"num_classes": len(class_names), "dropout": dropout, "drop_path": drop_path}
        if is_baseline(name):
            if ablation is not None:
                raise InputError(f"--model.ablation knows Mobile-Former, not {name}: leave it out")
            model = create_baseline(name, pretrained=pretrained, **options)
        else:
            model = mobile_former.create_model(name, **options)
            if ablation is not None:
                ablate(model, ablation)
            if pretrained is not None:
                mobile_former.load_weights(model, pretrained)
        self.model = model.to(memory_format=torch.channels_last)
        if freeze_backbone:
            if not hasattr(self.model, "backbone"):
                raise InputError(f"--model.freeze_backbone: {name} does not tell backbone and classifier apart")
            self.model.backbone.requires_grad_(False)
        if checkpoint_gradients:
            if is_baseline(name):
                raise InputError(f"--model.checkpoint_gradients knows Mobile-Former's blocks, not {name}: leave it out")
            mobile_former.checkpoint_gradients(self.model)
        count = len(class_names)
        self.train_top1 = MulticlassAccuracy(count, average="micro")
        metrics = {
            "top1": MulticlassAccuracy(count, average="micro"),
            "top5": MulticlassAccuracy(count, average="micro", top_k=min(5, count)),
            "per_class": MulticlassAccuracy(count, average=None),
            "confusion": MulticlassConfusionMatrix(count),
        }
        self.val_metrics = MetricCollection(metrics, prefix="val/", compute_groups=False)
        self.test_metrics = self.val_metrics.clone(prefix="test/")
        self.val_loss, self.test_loss = MeanMetric(), MeanMetric()
        self.train()  # Lightning keeps the mode it finds; this one leaves a frozen backbone in evaluation mode

    def forward(self, images: Tensor) -> Tensor:
        """Classify normalised images ``(B, 3, H, W)``: logits ``(B, K)``."""
        return self.model(images.contiguous(memory_format=torch.channels_last))

    def training_step(self, batch: dict, batch_idx: int) -> Tensor:
        """Mix, classify, compare."""
        images, labels = batch["image"], batch["label"]
        targets = labels
        if self.hparams.mixup_alpha > 0:
            # Of the seed and the batch's number alone, so that a resumed run draws what it would have drawn.
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
        """Classify and count."""
        self._evaluate(batch, self.val_metrics, self.val_loss)

    def on_validation_epoch_end(self) -> None:
        """Log loss, top-1 and top-5."""
        self._log_scores(self.val_metrics, self.val_loss)

    def test_step(self, batch: dict, batch_idx: int) -> None:
        """Classify and count."""
        self._evaluate(batch, self.test_metrics, self.test_loss)

    def on_test_epoch_end(self) -> None:
        """Log loss, top-1 and top-5."""
        self._log_scores(self.test_metrics, self.test_loss)

    def configure_optimizers(self) -> dict:
        """AdamW, warm-up and cosine by step."""
        return adamw(
            self.model,
            learning_rate=self.hparams.learning_rate * rate_factor(self.trainer, self.hparams.learning_rate_batch),
            weight_decay=self.hparams.weight_decay,
            warmup_epochs=self.hparams.warmup_epochs,
            **run_length(self.trainer),
        )

    def configure_callbacks(self) -> list[Callback]:
        """The moving average of the weights, where one is asked for."""
        return [EMAWeightAveraging(decay=self.hparams.ema_decay)] if self.hparams.ema_decay > 0 else []

    def train(self, mode: bool = True) -> "ClassificationModule":
        """Set the mode; a frozen backbone stays in evaluation mode, so that its BatchNorms stay as they are."""
        super().train(mode)
        if self.hparams.freeze_backbone:
            self.model.backbone.eval()
        return self

    @property
    def label(self) -> str:
        """A short name for tables and folders."""
        return "-".join(filter(None, (self.hparams.name, *ablation_names(self.hparams.ablation or ""))))

    def describe(self) -> str:
        """What is trained, in a line."""
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        return f"{self.label}: {trained / 1e6:.2f} M trained parameters"

    def draw_results(self, folder: Path, datamodule: ClassificationData) -> None:
        """Write the confusion matrix of the last evaluation, and a sheet of validation images with predictions."""
        draw_confusion(self.confusion, self.hparams.class_names, folder / "confusion_matrix.png")
        draw_predictions(self, datamodule, folder / "predictions.png")

    def _evaluate(self, batch: dict, metrics: MetricCollection, mean_loss: MeanMetric) -> None:
        logits = self(batch["image"])
        mean_loss.update(F.cross_entropy(logits, batch["label"]), weight=len(logits))
        metrics.update(logits, batch["label"])

    def _log_scores(self, metrics: MetricCollection, mean_loss: MeanMetric) -> None:
        values, prefix = metrics.compute(), metrics.prefix
        # The metrics have gathered over processes already; sync_dist tells Lightning that nothing is forgotten.
        self.log(f"{prefix}loss", mean_loss.compute(), sync_dist=True)
        self.log(f"{prefix}top1", values[f"{prefix}top1"], prog_bar=True, sync_dist=True)
        self.log(f"{prefix}top5", values[f"{prefix}top5"], sync_dist=True)
        self.per_class = values[f"{prefix}per_class"].cpu().numpy()
        self.confusion = values[f"{prefix}confusion"].cpu().numpy()
        metrics.reset()
        mean_loss.reset()
