import copy
import json
import logging
import math

import cv2
import pytest
import torch
from pytorch_lightning import Callback, seed_everything
from pytorch_lightning.callbacks import ModelCheckpoint

from detection.data.module import DetectionData
from detection.evaluation import NUMBERS
from detection.module import DetectionModule
from mobile_former.errors import InputError
from tests.conftest import trainer_with

CLASSES = ["bar", "disc"]
HELP = {"focal": True, "refine_boxes": True, "dense_head": True, "choose_queries": True}


def module_of(class_names=CLASSES, **options):
    torch.manual_seed(0)
    return DetectionModule(class_names, **({"name": "e2e_mf_26m", "learning_rate": 1e-3} | options))


def data_of(root, **options):
    small = {"short_sides": (64,), "short_side": 64, "longest": 128, "crop": 0.0, "batch_size": 2, "num_workers": 0}
    return DetectionData("coco", str(root), **(small | options))


def fit(module, root, *callbacks, **options):
    seed_everything(0, verbose=False)
    trainer = trainer_with(*callbacks, **options)
    trainer.fit(module, data_of(root))
    return trainer


# Learning rates


class Rates(Callback):
    """Keeps learning rate and weight decay of every parameter at every optimiser step."""

    def __init__(self):
        self.seen = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        names = {parameter: name for name, parameter in pl_module.model.named_parameters()}
        step = {}
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                assert names[parameter] not in step
                step[names[parameter]] = (group["lr"], group["weight_decay"])
        self.seen.append(step)


@pytest.mark.parametrize("options", [{}, HELP], ids=["published", "helped"])
def test_backbone_and_rest_have_learning_rates_of_their_own_which_fall_to_a_tenth_at_milestones(shapes, options):
    rates = Rates()
    module = module_of(
        learning_rate=1e-4, backbone_learning_rate=1e-5, weight_decay=0.3, milestones=[1, 3], **options
    )  # fmt: skip
    fit(module, shapes, rates, max_epochs=4, limit_train_batches=2, limit_val_batches=0)
    assert len(rates.seen) == 8
    for step, factor in zip(rates.seen, [1, 1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01], strict=True):
        trained = {name for name, parameter in module.model.named_parameters() if parameter.requires_grad}
        assert step.keys() == trained
        for name, (rate, _) in step.items():
            assert rate == pytest.approx(factor * (1e-5 if name.startswith("backbone.") else 1e-4)), name
    decays = {name: decay for name, (_, decay) in rates.seen[0].items()}
    assert set(decays.values()) == {0.0, 0.3}
    assert all(decay == 0 for name, decay in decays.items() if name.endswith("bias"))


def test_without_a_rate_of_its_own_the_backbone_learns_as_the_rest_does_along_a_cosine(shapes):
    rates = Rates()
    module = module_of(learning_rate=0.01, warmup_epochs=1.0)
    fit(module, shapes, rates, max_epochs=3, limit_val_batches=0)
    expected = [0.01 * (step + 1) / 3 for step in range(3)]
    expected += [0.01 * math.cos(math.pi / 2 * step / 6) ** 2 for step in range(6)]
    for step, rate in zip(rates.seen, expected, strict=True):
        assert {round(value, 12) for value, _ in step.values()} == {round(rate, 12)}


# Loss and scores


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_the_loss_of_an_evaluation_is_the_mean_over_images(shapes, stage):
    module = module_of()
    (metrics,) = getattr(trainer_with(), stage)(module, data_of(shapes, split="val"), verbose=False)
    found = metrics["val/loss" if stage == "validate" else "test/loss"]

    def losses(batch_size):
        seen = []
        hook = module.model.criterion.register_forward_hook(lambda *args: seen.append(args[-1]["total"].item()))
        trainer_with().validate(module, data_of(shapes, batch_size=batch_size), verbose=False)
        hook.remove()
        return seen

    pair, single = losses(2)
    assert found == pytest.approx((2 * pair + single) / 3, rel=1e-4)
    assert abs(pair - single) > 1e-3
    # Each image has two objects, so that batches weigh them alike.
    assert found == pytest.approx(sum(losses(1)) / 3, rel=0.02)


def test_training_logs_the_terms_of_the_loss_as_means_of_the_epoch(shapes):
    module = module_of(**HELP)
    seen = []
    original = module.model.loss

    def loss(outputs, targets):
        seen.append({name: value.item() for name, value in original(outputs, targets).items()})
        return original(outputs, targets)

    module.model.loss = loss
    trainer = fit(module, shapes, max_epochs=1, limit_val_batches=0)
    assert len(seen) == 3
    for name, key in (("total", "loss"), *((term, term) for term in ("loss_ce", "loss_bbox", "loss_giou"))):
        expected = sum(losses[name] for losses in seen) / 3
        assert trainer.callback_metrics[f"train/{key}"].item() == pytest.approx(expected, rel=1e-4)
    logged = {name for name in trainer.callback_metrics if name.startswith("train/loss_")}
    assert not any(name[-1].isdigit() for name in logged)
    assert len(logged) > 3, "the dense head's terms should be told as well"


class Perfect(Callback):
    """Makes a model answer each batch with its objects; misplaced by a share of the image, if asked for."""

    def __init__(self, misplaced=0.0):
        self.misplaced = misplaced

    def answer(self, model, batch):
        logits = torch.full((len(batch["targets"]), 6, 3), -9.0)
        logits[:, :, 2] = 9.0
        boxes = torch.full((len(batch["targets"]), 6, 4), 0.5)
        for number, target in enumerate(batch["targets"]):
            count = len(target["labels"])
            logits[number, range(count), target["labels"]] = 20.0
            boxes[number, :count] = target["boxes"] + torch.tensor([self.misplaced, 0, 0, 0])
        model.forward = lambda *_, **__: {"logits": logits, "boxes": boxes, "auxiliary": []}

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        self.answer(pl_module.model, batch)

    def on_test_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        self.answer(pl_module.model, batch)


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_a_detector_that_finds_all_scores_1_in_the_pixels_of_the_originals(shapes, stage):
    module = module_of()
    (metrics,) = getattr(trainer_with(Perfect()), stage)(module, data_of(shapes, short_side=48), verbose=False)
    prefix = "val" if stage == "validate" else "test"
    assert set(metrics) == {f"{prefix}/loss", *(f"{prefix}/{name}" for name in NUMBERS)}
    for name in ("AP", "AP50", "AP75", "AP_small", "AR"):
        assert metrics[f"{prefix}/{name}"] == pytest.approx(1)
    assert metrics[f"{prefix}/AP_large"] == -1
    assert module.per_class == pytest.approx({"bar": 1, "disc": 1})
    assert module.scores == pytest.approx({name: metrics[f"{prefix}/{name}"] for name in NUMBERS})
    (metrics,) = trainer_with(Perfect(misplaced=0.5)).validate(module, data_of(shapes), verbose=False)
    assert metrics["val/AP"] < 0.1


def test_scores_start_afresh_in_every_evaluation(shapes):
    module = module_of()
    data = data_of(shapes)
    for misplaced, low, high in ((0.5, 0, 0.1), (0.0, 0.999, 1)):
        (metrics,) = trainer_with(Perfect(misplaced)).validate(module, data, verbose=False)
        assert low <= metrics["val/AP"] <= high
        assert len(module.average_precision.results()) == 3 * 6


def test_detecting_gives_boxes_in_the_frames_asked_for_whatever_else_is_in_the_batch(shapes):
    data = data_of(shapes)
    data.setup("validate")
    images = [data.val_set[index]["image"] for index in range(3)]
    mean, std = data.hparams["mean"], data.hparams["std"]
    for options in ({}, HELP):
        module = module_of(**options).double()  # in which hardly two scores of an untrained model are equal
        module.train()
        sizes = [(64, 96), (192, 128), (72, 80)]
        together = module.detect(images, sizes, mean, std)
        assert module.training
        for found, image, (height, width) in zip(together, images, sizes, strict=True):
            (alone,) = module.detect([image], [(1, 1)], mean, std)
            frame = torch.tensor([width, height, width, height])
            torch.testing.assert_close(found["scores"], alone["scores"], atol=1e-4, rtol=0)
            torch.testing.assert_close(found["boxes"] / frame, alone["boxes"], atol=2e-3, rtol=0)
            assert (found["scores"].diff() <= 0).all()
            assert (found["boxes"] >= 0).all()
            assert (found["boxes"] <= frame).all()


def test_results_are_drawn_printed_and_written(shapes, tmp_path, capsys):
    module, data = module_of(["bar", "disc"]), data_of(shapes)
    trainer_with(Perfect()).validate(module, data, verbose=False)
    del module.model.forward  # the real one again
    module.draw_results(tmp_path, data)
    assert cv2.imread(str(tmp_path / "predictions.png")).std() > 5
    ap = json.loads((tmp_path / "ap.json").read_text())
    assert ap["per_class"] == pytest.approx({"bar": 1, "disc": 1})
    assert {*ap} == {*NUMBERS, "per_class"}
    module.print_scores("numbers")
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("AP by class", "bar", "disc", "numbers", *NUMBERS))
    (line,) = (line for line in printed.splitlines() if "AP_large" in line)
    assert "none to find" in line


def test_classes_with_nothing_to_find_are_named_last(shapes, capsys):
    module = module_of()
    module.scores = dict.fromkeys(NUMBERS, 0.5)
    module.per_class = {f"class {number}": value for number, value in enumerate((0.75, -1.0, 0.25, 0.0))}
    module.print_scores("title [bold]")
    module.print_classes()
    lines = capsys.readouterr().out.splitlines()
    assert "title [bold]" in lines[0]  # no mark-up
    rows = [line.split()[2] for line in lines if "class " in line and line.startswith("│")]
    assert rows == ["3", "2", "0", "1"]


@pytest.mark.parametrize(("name", "options"), [("e2e_mf_26m", HELP), ("e2e_mf_26m", {}), ("retinanet_mf_26m", {})])
def test_checkpointed_gradients_train_to_the_same_weights(shapes, name, options):
    states = []
    for checkpoint_gradients in (False, True):
        more = {"checkpoint_gradients": checkpoint_gradients, "freeze_batch_norm": not options}
        module = module_of(name=name, **more, **options)
        fit(module, shapes, max_epochs=1, limit_train_batches=2, limit_val_batches=1, precision="64-true")
        assert any(hasattr(part, "checkpoint_gradients") for part in module.model.modules()) == checkpoint_gradients
        states.append(module.model.state_dict())
    for key, expected in states[0].items():
        torch.testing.assert_close(states[1][key], expected, rtol=1e-8, atol=1e-8, msg=key)


def test_gradients_of_another_library_s_backbone_are_not_checkpointed():
    pytest.importorskip("transformers")
    for options in ({"backbone": "transformers/resnet18"}, {"name": "detr_r50"}):
        with pytest.raises(InputError, match=r"checkpoint_gradients .* not for transformers/resnet\d\d: leave it out"):
            module_of(checkpoint_gradients=True, **options)


# The moving average, checkpoints


class Snapshots(Callback):
    """Keeps the weights after every optimiser step."""

    def __init__(self):
        self.states = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.states.append(copy.deepcopy(pl_module.model.state_dict()))


@pytest.mark.parametrize("decay", [0.0, 0.6])
def test_what_is_saved_and_validated_is_the_moving_average_where_one_is_asked_for(shapes, tmp_path, decay):
    module, snapshots, validated = module_of(ema_decay=decay), Snapshots(), []

    class Validated(Callback):
        def on_validation_batch_start(self, trainer, pl_module, *_):
            validated.append(copy.deepcopy(pl_module.model.state_dict()))

    last = ModelCheckpoint(dirpath=tmp_path, filename="last")
    fit(module, shapes, snapshots, Validated(), last, max_epochs=1, enable_checkpointing=True, limit_val_batches=1)
    averages = []
    for step, state in enumerate(snapshots.states):
        before, factor = averages[-1] if averages else state, min(decay, (1 + step) / (10 + step))
        averages.append({name: factor * before[name] + (1 - factor) * value for name, value in state.items()})
    assert len(averages) == 3
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    names = [name for name, _ in module.model.named_parameters()]
    for name in names:
        torch.testing.assert_close(saved[f"model.{name}"], averages[-1][name], msg=lambda text, name=name: name + text)
        torch.testing.assert_close(validated[0][name], averages[-1][name])
    moved = [name for name in names if not torch.allclose(snapshots.states[-1][name], averages[-1][name])]
    assert (len(moved) > 0.5 * len(names)) == (decay > 0)


def only_plain(value):
    if isinstance(value, dict):
        return all(type(key) is str and only_plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(only_plain(item) for item in value)
    return type(value) in (str, int, float, bool, type(None))


@pytest.mark.parametrize("options", [{}, HELP | {"milestones": [2], "backbone_learning_rate": 1e-5}])
def test_a_checkpoint_is_read_without_unpickling_and_rebuilds_the_module(shapes, tmp_path, options):
    module = module_of(tuple(CLASSES), **options)
    last = ModelCheckpoint(dirpath=tmp_path, filename="last")
    fit(module, shapes, last, enable_checkpointing=True, max_epochs=1, limit_train_batches=1, limit_val_batches=0)
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    for part in ("hyper_parameters", "datamodule_hyper_parameters"):
        assert only_plain({name: value for name, value in content[part].items() if not name.startswith("_")})
    assert content["hyper_parameters"]["class_names"] == CLASSES
    assert "pretrained" not in content["hyper_parameters"]  # a checkpoint must load where that file is not
    loaded = DetectionModule.load_from_checkpoint(tmp_path / "last.ckpt", map_location="cpu", weights_only=True)
    assert dict(loaded.hparams) == dict(module.hparams)
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        first, second = loaded.eval()(images), module.eval()(images)
    assert torch.equal(first["logits"], second["logits"])
    assert torch.equal(first["boxes"], second["boxes"])


def test_a_line_describes_how_much_is_trained():
    module = module_of()
    count = sum(parameter.numel() for parameter in module.parameters())
    assert module.describe() == f"e2e_mf_26m: {count / 1e6:.2f} M parameters"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "e2e_mf_27m"}, "e2e_mf_26m"),
        ({"class_names": []}, "class"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"backbone_learning_rate": -1.0}, "backbone_learning_rate is -1.0"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1"),
        ({"warmup_epochs": -1.0}, "warmup_epochs is -1.0"),
        ({"milestones": [0, 2]}, "milestones"),
        ({"milestones": [2, 2]}, "milestones"),
        ({"milestones": [3, 2]}, "milestones"),
        ({"ema_decay": 1.0}, "ema_decay is 1.0"),
        ({"ema_decay": -0.1}, "ema_decay is -0.1"),
        ({"choose_queries": True, "refine_boxes": True}, "dense_head"),
        ({"choose_queries": True, "dense_head": True}, "refine_boxes"),
    ],
)
def test_arguments_out_of_range_are_named(options, message):
    with pytest.raises(InputError, match=message):
        module_of(**options)


def test_a_module_of_one_class_trains(shapes, caplog):
    # One category alone is common in detection.
    module = DetectionModule(["thing"], "e2e_mf_26m", **HELP)

    class Relabel(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            for target in batch["targets"]:
                target["labels"].zero_()

    trainer = fit(module, shapes, Relabel(), max_epochs=1, limit_val_batches=0)
    assert trainer.callback_metrics["train/loss"].isfinite()
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
