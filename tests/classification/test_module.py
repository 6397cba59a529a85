import copy
import math
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pytorch_lightning import Callback, LightningDataModule
from pytorch_lightning.callbacks import ModelCheckpoint
from sklearn.metrics import (
    balanced_accuracy_score,
    confusion_matrix,
    precision_recall_fscore_support,
    roc_auc_score,
    top_k_accuracy_score,
)
from sklearn.utils.class_weight import compute_class_weight
from torch.utils.data import DataLoader

import mobile_former
from classification.module import ClassificationModule
from mobile_former.errors import InputError
from tests.conftest import trainer_with

CLASSES = ["a", "b", "c"]


def module_of(class_names=CLASSES, **options):
    torch.manual_seed(0)
    return ClassificationModule(class_names, **({"name": "mobile_former_26m", "learning_rate": 1e-2} | options))


def batches(count=3, size=4, classes=3, side=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "image": torch.randn(size, 3, side, side, generator=generator),
            "label": torch.randint(classes, (size,), generator=generator),
        }
        for _ in range(count)
    ]


def loader(samples):
    return DataLoader(samples, batch_size=None)


def fit(module, *callbacks, train=None, val=None, **options):
    trainer = trainer_with(*callbacks, **options)
    trainer.fit(module, loader(train or batches()), None if val is None else loader(val))
    return trainer


class Losses(Callback):
    """Record the logits and the loss of every training step."""

    def __init__(self, module):
        self.logits, self.losses = [], []
        module.model.register_forward_hook(lambda _, __, output: self.logits.append(output.detach().double()))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(outputs["loss"].item())


# Loss


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.6])
def test_the_loss_is_the_mean_cross_entropy_with_smoothed_labels(smoothing):
    module = module_of(label_smoothing=smoothing)
    watched, data = Losses(module), batches()
    fit(module, watched, train=data, max_epochs=1)
    assert len(watched.losses) == len(data)
    for batch, logits, loss in zip(data, watched.logits, watched.losses, strict=True):
        expected = 0.0
        for row, label in zip(logits.tolist(), batch["label"].tolist(), strict=True):
            log_sum = math.log(sum(math.exp(value) for value in row))
            for number, value in enumerate(row):
                target = smoothing / 3 + (1 - smoothing) * (number == label)
                expected += target * (log_sum - value) / len(logits)
        assert loss == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_class_weights_multiply_the_terms_of_the_loss(smoothing):
    """The loss is divided by the number of images, so that it is the same however images are divided into batches."""
    weights = [0.5, 4.0, 1.5]
    module = module_of(class_weights=weights, label_smoothing=smoothing)
    watched, data = Losses(module), batches(size=5)
    trainer = fit(module, watched, train=data, max_epochs=1)
    plain = []
    for batch, logits, loss in zip(data, watched.logits, watched.losses, strict=True):
        targets = (1 - smoothing) * F.one_hot(batch["label"], 3) + smoothing / 3
        terms = -targets * torch.tensor(weights, dtype=torch.double) * logits.log_softmax(1)
        assert loss == pytest.approx(terms.sum().item() / 5, rel=1e-4)
        plain.append(F.cross_entropy(logits, batch["label"]).item())
    assert trainer.callback_metrics["train/cross_entropy"].item() == pytest.approx(np.mean(plain), rel=1e-4)


class Counted(LightningDataModule):
    class_balance = 0.0

    def class_counts(self):
        return np.array([12, 3, 5])

    def train_dataloader(self):
        return loader(batches(count=1))


def test_weights_and_sampling_of_rare_classes_together_give_a_warning(caplog):
    data = Counted()
    trainer_with(max_epochs=1).fit(module_of(class_weights="balanced"), datamodule=data)
    assert "--data.class_balance" not in caplog.text
    data.class_balance = 0.5
    trainer_with(max_epochs=1).fit(module_of(), datamodule=data)
    assert "--data.class_balance" not in caplog.text
    trainer_with(max_epochs=1).fit(module_of(class_weights="balanced"), datamodule=data)
    assert "--model.class_weights and --data.class_balance both raise the share of rare classes" in caplog.text


def test_balanced_class_weights_are_those_of_scikit_learn():
    module = module_of(class_weights="balanced")
    trainer_with(max_epochs=1).fit(module, datamodule=Counted())
    labels = np.repeat([0, 1, 2], [12, 3, 5])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    np.testing.assert_allclose(module.class_weight.numpy(), expected, rtol=1e-6)
    assert "class_weight" not in module.state_dict()


def test_a_batch_is_mixed_by_mixup_or_by_cutmix():
    module = module_of(mixup_alpha=0.4, cutmix_alpha=1.0)
    inputs = []
    module.model.register_forward_pre_hook(lambda _, args: inputs.append(args[0].clone()))
    data = batches(count=12)
    trainer = fit(module, train=data, max_epochs=1)
    cut = []
    for batch, images in zip(data, inputs, strict=True):
        original, other = batch["image"], batch["image"].flip(0)
        cut.append(bool(((images == original) | (images == other)).all()))
    assert 0 < sum(cut) < 12
    assert "train/top1" not in trainer.callback_metrics  # mixed images have no true class


def test_curves_compare_only_losses_that_can_be_compared():
    assert module_of().curves["loss"] == ("train/loss", "val/loss")
    weighted = module_of(class_weights="balanced", label_smoothing=0.1).curves
    assert weighted["cross-entropy"] == ("train/cross_entropy", "val/loss")
    assert weighted["loss with label smoothing + class weights"] == ("train/loss",)
    mixed = module_of(cutmix_alpha=1.0).curves
    assert mixed["cross-entropy"] == ("val/loss",)
    assert mixed["loss with CutMix"] == ("train/loss",)
    assert not [name for names in mixed.values() for name in names if name == "train/top1"]


def test_mixup_blends_images_and_loss_with_the_same_weights():
    module = module_of(label_smoothing=0.1, mixup_alpha=0.4)
    inputs = []
    module.model.register_forward_pre_hook(lambda _, args: inputs.append(args[0].clone()))
    watched, data = Losses(module), batches(size=5)
    fit(module, watched, train=data, max_epochs=1)
    all_weights = []
    for batch, images, logits, loss in zip(data, inputs, watched.logits, watched.losses, strict=True):
        first, second = batch["image"], batch["image"].flip(0)
        # The weight of each image, by least squares from its pixels. The middle image is its own partner.
        direction = (first - second).flatten(1)
        weights = ((images - second).flatten(1) * direction).sum(1) / direction.square().sum(1).clamp(min=1e-9)
        torch.testing.assert_close(images, second + weights[:, None, None, None] * (first - second), atol=1e-5, rtol=0)
        assert ((weights >= -1e-5) & (weights <= 1 + 1e-5)).all()
        targets = torch.zeros(5, 3, dtype=torch.double)
        for index in range(5):
            targets[index, batch["label"][index]] += weights[index]
            targets[index, batch["label"][4 - index]] += 1 - weights[index]
        expected = -((0.9 * targets + 0.1 / 3) * logits.log_softmax(1)).sum(1).mean().item()
        assert loss == pytest.approx(expected, rel=1e-4)
        all_weights += weights[[0, 1, 3, 4]].tolist()
    assert len({round(weight, 5) for weight in all_weights}) == 12, (
        "each image of each batch should have its own weight"
    )


def test_mixup_depends_only_on_seed_epoch_and_batch():
    def seen_by(seed, before=0):
        module = module_of(mixup_alpha=0.4)
        seen = []
        module.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
        torch.manual_seed(seed)
        torch.rand(before), np.random.rand(before)
        fit(module)
        return torch.stack(seen)

    first = seen_by(0)
    assert torch.equal(first, seen_by(0, before=7))
    assert not torch.equal(first, seen_by(1))
    assert not torch.equal(first[:3], first[3:]), "the second epoch should draw other weights"


def test_evaluation_applies_neither_smoothing_nor_mixup():
    data = batches(size=5)
    module = module_of(label_smoothing=0.3, mixup_alpha=0.5).eval()
    with torch.no_grad():
        logits = [module(batch["image"]) for batch in data]
    labels = torch.cat([batch["label"] for batch in data])
    (metrics,) = trainer_with().validate(module, loader(data), verbose=False)
    expected = F.nll_loss(torch.cat(logits).double().log_softmax(1), labels).item()
    assert metrics["val/loss"] == pytest.approx(expected, rel=1e-4)


def test_the_loss_of_an_evaluation_is_the_mean_over_images_not_batches():
    data = batches(count=1, size=7) + batches(count=1, size=1, seed=1)
    module = module_of()
    torch.nn.init.normal_(module.model.classifier.logits.weight, std=1.0)
    module.eval()
    with torch.no_grad():
        losses = [F.cross_entropy(module(batch["image"]), batch["label"]).item() for batch in data]
    (metrics,) = trainer_with().validate(module, loader(data), verbose=False)
    assert metrics["val/loss"] == pytest.approx((7 * losses[0] + losses[1]) / 8, rel=1e-4)
    assert abs(losses[0] - losses[1]) > 0.01


# Schedule


class Rates(Callback):
    """Record the learning rate of every optimiser step."""

    def __init__(self):
        self.rates = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.rates.append(optimizer.param_groups[0]["lr"])


@pytest.mark.parametrize(
    ("options", "warmup_steps", "total_steps"),
    [
        ({"max_epochs": 4}, 6, 12),
        ({"max_epochs": 4, "accumulate_grad_batches": 2}, 4, 8),
        ({"max_epochs": -1, "max_steps": 10}, 6, 10),  # the warm-up still lasts two epochs
        ({"max_epochs": 100, "max_steps": 10}, 6, 10),
    ],
)
def test_the_warm_up_lasts_its_epochs_if_the_run_is_limited_by_epochs_or_steps(options, warmup_steps, total_steps):
    rates = Rates()
    fit(module_of(warmup_epochs=2.0, learning_rate=0.01), rates, train=batches(size=2), **options)
    rest = total_steps - warmup_steps
    expected = [0.01 * (step + 1) / warmup_steps for step in range(warmup_steps)]
    expected += [0.01 * math.cos(math.pi / 2 * step / rest) ** 2 for step in range(rest)]
    assert rates.rates == pytest.approx(expected)


# Scores


@pytest.mark.filterwarnings("ignore:Only one class is present")
@pytest.mark.parametrize("count", [2, 3, 5, 12])
@pytest.mark.parametrize("stage", ["validate", "test"])
def test_scores_agree_with_scikit_learn(count, stage, monkeypatch):
    generator = np.random.default_rng(count)
    logits = generator.normal(size=(53, count)).astype(np.float32)
    labels = generator.integers(0, count, 53)
    labels[labels == 1] = 0  # class 1 has no image
    module = module_of([f"class {index}" for index in range(count)])
    monkeypatch.setattr(module, "forward", lambda images: images[:, 0, 0, :count])
    images = torch.zeros(53, 3, 1, count)
    images[:, 0, 0] = torch.from_numpy(logits)
    data = [
        {"image": images[start : start + 20], "label": torch.from_numpy(labels[start : start + 20])}
        for start in (0, 20, 40)
    ]
    (metrics,) = getattr(trainer_with(), stage)(module, loader(data), verbose=False)
    prefix = "val" if stage == "validate" else "test"
    means = {"balanced_accuracy"} | ({"precision", "recall", "f1", "roc_auc"} if stage == "test" else set())
    scores = {"loss", "top1", *(["top5"] if count > 5 else []), *means}
    if count == 2:  # all images are of one class
        scores, means = scores - {"roc_auc"}, means - {"roc_auc"}
    assert set(metrics) == {f"{prefix}/{name}" for name in scores}
    assert metrics[f"{prefix}/top1"] == pytest.approx((logits.argmax(1) == labels).mean())
    if count > 5:
        top5 = top_k_accuracy_score(labels, logits, k=5, labels=range(count))
        assert metrics[f"{prefix}/top5"] == pytest.approx(top5)
    expected = confusion_matrix(labels, logits.argmax(1), labels=range(count))
    np.testing.assert_array_equal(module.confusion, expected)
    sizes = expected.sum(1)
    present = sizes > 0
    predicted, kept = logits.argmax(1), np.flatnonzero(present)
    precision, recall, f1, _ = precision_recall_fscore_support(labels, predicted, labels=range(count), zero_division=0)
    probabilities = torch.from_numpy(logits).softmax(1).numpy()
    areas = [roc_auc_score(labels == label, probabilities[:, label]) for label in kept if sizes[label] < 53]
    reference = {"precision": precision[kept], "recall": recall[kept], "f1": f1[kept], "roc_auc": areas}
    for name in means & {*reference}:
        found = module.per_class[name]
        defined = present & (sizes < 53) if name == "roc_auc" else present
        np.testing.assert_allclose(found[defined], reference[name], rtol=1e-5)
        assert np.isnan(found[~defined]).all()
        assert metrics[f"{prefix}/{name}"] == pytest.approx(np.mean(reference[name]), rel=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns of the class without images
        assert metrics[f"{prefix}/balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, predicted))


def test_every_evaluation_starts_with_empty_metrics():
    module, trainer = module_of(), trainer_with()
    trainer.validate(module, loader(batches(count=5)), verbose=False)
    trainer.validate(module, loader(batches(count=2)), verbose=False)
    assert module.confusion.sum() == 8


def test_training_logs_the_accuracy_and_the_mean_loss_of_the_epoch():
    module = module_of()
    watched, data = Losses(module), batches()
    trainer = fit(module, watched, train=data, max_epochs=1)
    right = sum((logits.argmax(1) == b["label"]).sum().item() for logits, b in zip(watched.logits, data, strict=True))
    assert trainer.callback_metrics["train/top1"].item() == pytest.approx(right / 12)
    assert trainer.callback_metrics["train/loss"].item() == pytest.approx(np.mean(watched.losses), rel=1e-5)


# The moving average


class Snapshots(Callback):
    """Record the weights after every optimiser step."""

    def __init__(self):
        self.states = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step > len(self.states):
            self.states.append(copy.deepcopy(pl_module.state_dict()))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_moving_average_is_validated_and_saved(tmp_path, accumulate):
    module, snapshots = module_of(ema_decay=0.7), Snapshots()
    validated = []

    class Validated(Callback):
        def on_validation_batch_start(self, trainer, pl_module, *_):
            validated.append(copy.deepcopy(pl_module.state_dict()))

    last = ModelCheckpoint(dirpath=tmp_path, filename="last")
    options = {"enable_checkpointing": True, "accumulate_grad_batches": accumulate}
    fit(module, snapshots, Validated(), last, train=batches(4), val=batches(1), **options)
    averages = []
    for step, state in enumerate(snapshots.states):
        before, decay = averages[-1] if averages else state, min(0.7, (1 + step) / (10 + step))
        averages.append({name: decay * before[name] + (1 - decay) * value for name, value in state.items()})
    assert len(averages) == 8 // accumulate
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    names = [name for name, _ in module.named_parameters()]
    stem, seen = "model.backbone.stem.", []  # the mean that each averaged stem computes from the batches of an epoch
    for number, batch in enumerate(batches(4), 4):
        weight = averages[(number + 1) // accumulate - 1][f"{stem}conv.weight"]
        seen.append(F.conv2d(batch["image"], weight, stride=2, padding=1).mean((0, 2, 3)))
    torch.testing.assert_close(saved[f"{stem}norm.running_mean"], torch.stack(seen).mean(0))
    for name in names:
        torch.testing.assert_close(saved[name], averages[-1][name], msg=lambda text, name=name: f"{name}: {text}")
        torch.testing.assert_close(validated[0][name], averages[4 // accumulate - 1][name])
        torch.testing.assert_close(module.state_dict()[name], averages[-1][name])
    moved = [name for name in names if not torch.allclose(snapshots.states[-1][name], averages[-1][name])]
    assert len(moved) > 0.5 * len(names)


def test_without_a_decay_the_last_weights_are_saved(tmp_path):
    module, snapshots = module_of(), Snapshots()
    fit(module, snapshots, ModelCheckpoint(dirpath=tmp_path, filename="last"), enable_checkpointing=True)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(value, snapshots.states[-1][name]) for name, value in saved.items())


# A frozen backbone


@pytest.mark.parametrize("validation", [False, True])
def test_a_frozen_backbone_stays_bitwise_equal_while_the_classifier_learns(validation):
    module = module_of(freeze_backbone=True, weight_decay=0.5)
    before = copy.deepcopy(module.model.state_dict())
    fit(module, val=batches(1) if validation else None, num_sanity_val_steps=2)
    after = module.model.state_dict()
    for name, value in before.items():
        if name.startswith("backbone."):
            assert torch.equal(after[name], value), name
    learned = [name for name in before if name.startswith("classifier.") and not torch.equal(after[name], before[name])]
    assert {"classifier.logits.weight", "classifier.logits.bias"} <= set(learned)
    assert any("running_mean" in name for name in learned)


def test_all_parts_of_a_model_learn_unless_they_are_frozen():
    module = module_of()
    before = copy.deepcopy(module.model.state_dict())
    fit(module)
    after = module.model.state_dict()
    assert all(not torch.equal(after[name], value) for name, value in before.items() if "running" in name)
    assert not torch.equal(after["backbone.tokens"], before["backbone.tokens"])


# Checkpoints


def only_plain(value):
    if isinstance(value, dict):
        return all(type(key) is str and only_plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(only_plain(item) for item in value)
    return type(value) in (str, int, float, bool, type(None))


@pytest.mark.parametrize("ema_decay", [0.0, 0.5])
def test_a_checkpoint_needs_no_unpickling_and_restores_the_module(tmp_path, ema_decay):
    module = module_of(tuple(CLASSES), dropout=0.2, drop_path=0.1, mixup_alpha=0.2, ema_decay=ema_decay)
    last = ModelCheckpoint(dirpath=tmp_path, filename="last")
    fit(module, last, enable_checkpointing=True, max_epochs=1)
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    options = {name: value for name, value in content["hyper_parameters"].items() if not name.startswith("_")}
    assert only_plain(options)
    assert options["class_names"] == CLASSES
    assert (options["dropout"], options["drop_path"], options["name"]) == (0.2, 0.1, "mobile_former_26m")
    loaded = ClassificationModule.load_from_checkpoint(tmp_path / "last.ckpt", map_location="cpu", weights_only=True)
    assert dict(loaded.hparams) == dict(module.hparams)
    image = batches(1)[0]["image"]
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(image), module.eval()(image))


def test_pretrained_weights_are_loaded_and_their_path_is_not_saved(tmp_path):
    torch.manual_seed(5)
    source = mobile_former.mobile_former_26m(num_classes=3)
    mobile_former.save_weights(source, tmp_path / "weights.safetensors")
    module = module_of(pretrained=str(tmp_path / "weights.safetensors"))
    for name, value in source.state_dict().items():
        assert torch.equal(module.model.state_dict()[name], value)
    assert "pretrained" not in module.hparams  # a checkpoint must load without that file


def test_pretrained_weights_of_other_classes_are_loaded_except_the_last_linear_layer(tmp_path):
    source = mobile_former.mobile_former_26m(num_classes=7)
    mobile_former.save_weights(source, tmp_path / "weights.safetensors")
    model = module_of(pretrained=str(tmp_path / "weights.safetensors")).model
    for name, value in source.state_dict().items():
        if not name.startswith("classifier.logits."):
            assert torch.equal(model.state_dict()[name], value)
    assert model.classifier.logits.weight.shape == (3, 1024)


# Gradient checkpointing


def test_gradient_checkpointing_gives_the_same_weights_with_dropout_and_stochastic_depth():
    states = []
    for checkpoint_gradients in (False, True):
        module = module_of(checkpoint_gradients=checkpoint_gradients, dropout=0.2, drop_path=0.3)
        assert any(hasattr(part, "checkpoint_gradients") for part in module.model.modules()) == checkpoint_gradients
        torch.manual_seed(1)
        fit(module, precision="64-true")
        states.append(module.model.state_dict())
    for key, expected in states[0].items():
        torch.testing.assert_close(states[1][key], expected, rtol=1e-8, atol=1e-8, msg=key)


def test_gradient_checkpointing_is_refused_for_models_of_other_libraries():
    pytest.importorskip("transformers")
    with pytest.raises(InputError, match=r"checkpoint_gradients .* not to transformers/resnet18: leave it out"):
        module_of(name="transformers/resnet18", checkpoint_gradients=True)


# Ablations


def test_an_ablation_is_part_of_the_label_and_of_the_architecture():
    module = ClassificationModule(CLASSES, name="mobile_former_26m", ablation="no_ffn,tokens=2")
    assert module.label == "mobile_former_26m-no_ffn-tokens=2"
    assert "ablation" in module.architecture
    assert ClassificationModule(CLASSES, name="mobile_former_26m").label == "mobile_former_26m"


def test_ablations_are_refused_for_models_of_other_libraries():
    with pytest.raises(
        InputError, match=r"--model\.ablation applies only to Mobile-Former, not to transformers/resnet18"
    ):
        ClassificationModule(CLASSES, name="transformers/resnet18", ablation="relu")


# Invalid arguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixup_alpha": -0.1}, "mixup_alpha is -0.1"),
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0"),
        ({"label_smoothing": -0.1}, "label_smoothing is -0.1"),
        ({"ema_decay": 1.0}, "ema_decay is 1.0"),
        ({"ema_decay": -0.5}, "ema_decay is -0.5"),
        ({"dropout": 1.0}, "dropout"),
        ({"drop_path": -0.1}, "drop_path"),
        ({"name": "mobile_former_27m"}, "mobile_former_26m"),
        ({"class_names": []}, "class"),
        ({"class_names": ["alone"]}, "class"),
    ],
)
def test_arguments_out_of_range_are_named(options, message):
    with pytest.raises(InputError, match=message):
        module_of(**options)


def test_a_missing_pretrained_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.safetensors"):
        module_of(pretrained=str(tmp_path / "nowhere.safetensors"))


def test_the_trained_parameters_are_described_in_one_line():
    whole, head = module_of(), module_of(freeze_backbone=True)
    millions = [sum(p.numel() for p in part.parameters()) / 1e6 for part in (whole.model, whole.model.classifier)]
    assert [module.describe() for module in (whole, head)] == [
        f"mobile_former_26m: {count:.2f} M trained parameters" for count in millions
    ]
