import math
import re
from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader

import mobile_former
from mobile_former.errors import InputError
from mobile_former.training.optimisation import (
    Optimisation,
    adamw,
    parameter_groups,
    rate_factor,
    total_batch,
    warmup_cosine,
    warmup_milestones,
)


def names_of(groups, model):
    names = {id(parameter): name for name, parameter in model.named_parameters(remove_duplicate=False)}
    return [[names[id(parameter)] for parameter in group["params"]] for group in groups]


def test_all_parameters_except_biases_and_norms_decay():
    model = mobile_former.mobile_former_26m(num_classes=4)
    groups = parameter_groups(model, 0.2)
    assert [group["weight_decay"] for group in groups] == [0.2, 0.0]
    decay, no_decay = names_of(groups, model)
    norms = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.LayerNorm)
    }
    expected = {name for name, _ in model.named_parameters() if name.endswith("bias") or name in norms}
    assert set(no_decay) == expected
    assert any(isinstance(module, nn.LayerNorm) for module in model.modules())
    assert "backbone.tokens" in decay
    assert "classifier.logits.weight" in decay


@pytest.mark.parametrize("name", ["mobile_former_26m", "mobile_former_508m"])
def test_every_parameter_is_in_exactly_one_group(name):
    model = mobile_former.create_model(name, num_classes=4)
    given = [id(parameter) for group in parameter_groups(model, 0.1) for parameter in group["params"]]
    assert sorted(given) == sorted(id(parameter) for parameter in model.parameters())


def test_a_parameter_that_two_modules_share_is_in_a_group_once():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    given = [id(parameter) for group in parameter_groups(model, 0.1) for parameter in group["params"]]
    assert sorted(given) == sorted({id(parameter) for parameter in model.parameters()})


def test_frozen_parameters_are_in_no_group():
    model = mobile_former.mobile_former_26m(num_classes=4)
    model.backbone.requires_grad_(False)
    decay, no_decay = names_of(parameter_groups(model, 0.1), model)
    assert set(decay + no_decay) == {name for name, _ in model.named_parameters() if name.startswith("classifier.")}


def test_a_step_without_gradient_changes_only_parameters_that_decay():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    nn.init.ones_(model[0].bias)
    before = {name: parameter.clone() for name, parameter in model.state_dict().items()}
    optimizer = adamw(model, learning_rate=0.1, weight_decay=0.5)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(model[0].weight.data, before["0.weight"] * (1 - 0.1 * 0.5))
    for name in ("0.bias", "1.weight", "1.bias"):
        assert torch.equal(model.state_dict()[name], before[name])


def schedule(warmup, total):
    """Return the factors of all steps of a run: a ramp of equal increments, then the squared cosine of an angle."""
    ramp = [sum([1 / warmup] * (step + 1)) for step in range(warmup)]
    rest = total - warmup
    return ramp + [math.cos(math.pi / 2 * step / rest) ** 2 for step in range(rest)] + [0.0] * 3


@pytest.mark.parametrize(("warmup", "total"), [(0, 1), (0, 7), (1, 10), (5, 50), (9, 10), (10, 10)])
def test_the_factor_rises_linearly_and_falls_along_half_a_cosine_to_zero(warmup, total):
    actual = [warmup_cosine(step, warmup, total) for step in range(total + 3)]
    assert actual == pytest.approx(schedule(warmup, total), abs=1e-12)
    assert max(actual) == pytest.approx(1)


class Recorder(LightningModule):
    """A linear layer that records the learning rate of each optimiser step."""

    def __init__(self, warmup_epochs, **options):
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.optimisation = Optimisation(**({"learning_rate": 0.5, "warmup_epochs": warmup_epochs} | options))
        self.rates = []

    def training_step(self, batch, batch_idx):
        return self.layer(batch).square().mean()

    def configure_optimizers(self):
        return self.optimisation.configure(self.layer, self.trainer)

    def on_before_optimizer_step(self, optimizer):
        self.rates.append([group["lr"] for group in optimizer.param_groups])


@pytest.mark.parametrize(
    ("backbone_rate", "expected"), [(None, {"lr": 0.5}), (0.5, {"lr": 0.5}), (0.125, {"lr": 0.5, "lr_backbone": 0.125})]
)
def test_the_rate_of_the_backbone_is_logged_if_it_differs(backbone_rate, expected, tmp_path):
    class Parts(nn.Sequential):
        def __init__(self):
            super().__init__()
            self.backbone, self.head = nn.Linear(2, 2), nn.Linear(2, 1)

    class Logged(Recorder):
        def configure_optimizers(self):
            self.layer = Parts()
            return self.optimisation.configure(self.layer, self.trainer, self.layer.backbone)

        def training_step(self, batch, batch_idx):
            self.logged = self.optimisation.rates(self.trainer)
            return super().training_step(batch, batch_idx)

    module = Logged(0, backbone_learning_rate=backbone_rate)
    trainer = fit(module, tmp_path, batch_size=12, max_epochs=1)
    assert module.logged == pytest.approx(expected)
    names = [group["name"] for group in trainer.optimizers[0].param_groups]
    assert names == ["model", "model_no_decay", "backbone", "backbone_no_decay"]


def fit(module, folder, *, batch_size=2, images=12, ckpt_path=None, **options):
    """Train ``module`` on 12 images and return the trainer, whose last checkpoint is ``folder/last.ckpt``."""
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        callbacks=[ModelCheckpoint(dirpath=folder, save_last=True, enable_version_counter=False)],
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    data = torch.randn(images, 2, generator=torch.Generator().manual_seed(0))
    trainer.fit(module, DataLoader(data, batch_size=batch_size), ckpt_path=ckpt_path, weights_only=True)
    return trainer


@pytest.mark.parametrize(
    ("warmup_epochs", "accumulate", "warmup_steps", "total_steps"),
    [
        (0, 1, 0, 24),
        (1, 1, 6, 24),
        (1.5, 1, 9, 24),
        (0.25, 1, 2, 24),  # 1.5, rounded
        (1, 2, 3, 12),
        (0.5, 4, 1, 8),  # six batches are two steps, the second of only two batches
        (9, 1, 24, 24),  # longer than the run
    ],
)
def test_lightning_advances_the_schedule_once_per_optimiser_step(
    tmp_path, warmup_epochs, accumulate, warmup_steps, total_steps
):
    module = Recorder(warmup_epochs)
    trainer = fit(module, tmp_path, max_epochs=4, accumulate_grad_batches=accumulate)
    assert trainer.global_step == len(module.rates) == total_steps
    expected = schedule(warmup_steps, total_steps)[:total_steps]
    assert [rates[0] for rates in module.rates] == pytest.approx([0.5 * factor for factor in expected])
    assert all(rates[0] == rates[1] for rates in module.rates)


def test_a_run_that_is_limited_in_steps_ends_its_schedule_there(tmp_path):
    module = Recorder(1)
    fit(module, tmp_path, max_steps=15, max_epochs=-1)
    assert [rates[0] for rates in module.rates] == pytest.approx([0.5 * factor for factor in schedule(6, 15)[:15]])


@pytest.mark.parametrize(
    ("changed", "warmup", "steps", "total_steps"),
    [
        ({}, 6, range(12, 24), 24),
        ({"batch_size": 4}, 3, range(6, 12), 12),
        ({"batch_size": 1}, 12, range(24, 48), 48),
        ({"accumulate_grad_batches": 3}, 2, range(4, 8), 8),
        ({"images": 18}, 9, range(18, 36), 36),
        ({"max_epochs": 8}, 6, range(12, 48), 48),
    ],
    ids=str,
)
def test_a_resumed_run_goes_on_at_the_right_place_of_its_present_schedule(
    tmp_path, changed, warmup, steps, total_steps
):
    fit(Recorder(1), tmp_path, max_epochs=2)
    resumed = Recorder(1)
    fit(resumed, tmp_path, **({"max_epochs": 4} | changed), ckpt_path=tmp_path / "last.ckpt")
    whole = schedule(warmup, total_steps)
    assert [rates[0] for rates in resumed.rates] == pytest.approx([0.5 * whole[step] for step in steps])


def test_a_resumed_run_takes_its_own_learning_rate_and_weight_decay(tmp_path):
    first, second = Recorder(1), Recorder(1, learning_rate=2e-3, weight_decay=0.25)
    fit(first, tmp_path, max_epochs=2)
    trainer = fit(second, tmp_path, max_epochs=4, ckpt_path=tmp_path / "last.ckpt")
    assert [rates[0] for rates in second.rates] == pytest.approx([2e-3 * f for f in schedule(6, 24)[12:24]])
    decays = [(group["weight_decay"], group["initial_lr"]) for group in trainer.optimizers[0].param_groups]
    assert decays == [(0.25, 2e-3), (0.0, 2e-3)]


@pytest.mark.parametrize(("meant_for", "factor"), [(None, 1.0), (48, 1.0), (12, 4.0), (192, 0.25)])
def test_learning_rates_are_scaled_to_the_total_batch_size(meant_for, factor):
    trainer = SimpleNamespace(
        datamodule=SimpleNamespace(hparams=SimpleNamespace(batch_size=8)), world_size=3, accumulate_grad_batches=2
    )
    assert total_batch(trainer) == 48
    assert rate_factor(trainer, meant_for) == factor


def test_the_factor_falls_to_a_tenth_at_each_milestone():
    factors = [warmup_milestones(step, 2, [3, 5]) for step in range(7)]
    assert factors == pytest.approx([0.5, 1, 1, 0.1, 0.1, 0.01, 0.01])


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("learning_rate", 0.0),
        ("backbone_learning_rate", 0.0),
        ("learning_rate_batch", 0),
        ("weight_decay", -0.1),
        ("warmup_epochs", -1.0),
        ("milestones", [3, 2]),
        ("milestones", [0]),
        ("ema_decay", 1.0),
    ],
)
def test_the_error_for_a_value_out_of_range_names_the_option(option, value):
    with pytest.raises(InputError, match=rf"--model\.{option} is {re.escape(str(value))}: give "):
        Optimisation(**({"learning_rate": 0.1} | {option: value}))


def test_weights_are_averaged_only_with_a_decay():
    assert Optimisation(0.1).callbacks() == []
    assert len(Optimisation(0.1, ema_decay=0.9).callbacks()) == 1


@pytest.mark.parametrize("decay", [0.5, 0.999])
def test_the_decay_of_the_average_is_warmed_up(tmp_path, decay):
    (average,) = Optimisation(0.1, ema_decay=decay).callbacks()
    layer = nn.BatchNorm1d(1)
    module = Recorder(0)
    module.layer = layer
    average.setup(None, module, "fit")
    expected = 0.0
    for step in range(30):
        nn.init.constant_(layer.weight, step**2)
        layer.running_mean.fill_(step)
        trainer = SimpleNamespace(
            global_step=step + 1, max_steps=-1, accumulate_grad_batches=1, num_training_batches=100,
            check_val_every_n_epoch=1, val_check_batch=100,
        )  # fmt: skip
        average.on_train_batch_end(trainer, module, None, None, step)
        factor = min(decay, (1 + step) / (10 + step)) if step else 0
        expected = factor * expected + (1 - factor) * step**2
    averaged = average._average_model.module.layer
    assert averaged.weight.item() == pytest.approx(expected, rel=1e-5)
    assert averaged.running_mean.item() == 29


QUIET = {
    "logger": False,
    "num_sanity_val_steps": 0,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class Normalised(LightningModule):
    """A BatchNorm layer that sees its batch's number, and a record of the statistics that are validated."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(1)
        self.frozen = nn.BatchNorm1d(1)
        self.validated = []
        self.train()  # Lightning keeps this mode

    def forward(self, images):
        return self.norm(images) + self.frozen(images)

    def train(self, mode=True):
        super().train(mode)
        self.frozen.eval()
        return self

    def training_step(self, batch, batch_idx):
        return self(batch["image"]).square().mean()

    def validation_step(self, batch, batch_idx):
        self.validated.append((self.norm.running_mean.item(), self.norm.running_var.item()))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize(
    ("batches", "options", "ranges"),
    [
        (25, {}, [(15, 25)]),
        (4, {}, [(0, 4)]),
        (300, {}, [(270, 300)]),
        (40, {"val_check_interval": 20}, [(10, 20), (30, 40)]),
        (30, {"accumulate_grad_batches": 4}, [(20, 30)]),
        (
            30,
            {"val_check_interval": 20, "check_val_every_n_epoch": None, "max_epochs": 2},
            [(10, 20), (0, 10), (20, 30)],
        ),
    ],
)
def test_the_average_has_the_statistics_of_the_batches_before_its_validation(batches, options, ranges):
    """The batches of number n have the mean n and the unbiased variance 4."""
    module = Normalised()
    (average,) = Optimisation(0.1, ema_decay=0.9).callbacks()
    images = [{"image": torch.tensor([[n - 3**0.5], [n + 3**0.5]] * 2)} for n in range(batches)]
    trainer = Trainer(**{"max_epochs": 1} | options, callbacks=[average], **QUIET)
    trainer.fit(module, DataLoader(images, batch_size=None), DataLoader([0], batch_size=None))
    assert len(module.validated) == len(ranges)
    for (mean, variance), (first, end) in zip(module.validated, ranges, strict=True):
        assert mean == pytest.approx(sum(range(first, end)) / (end - first), rel=1e-5)
        assert variance == pytest.approx(4, rel=1e-4)
    assert (module.frozen.running_mean.item(), module.frozen.running_var.item()) == (0, 1)


def test_a_run_that_max_steps_ends_within_an_epoch_has_statistics_of_its_last_batches():
    module = Normalised()
    (average,) = Optimisation(0.1, ema_decay=0.9).callbacks()
    images = [{"image": torch.tensor([[n - 1.0], [n + 1.0]])} for n in range(40)]
    trainer = Trainer(max_steps=17, callbacks=[average], **QUIET)
    trainer.fit(module, DataLoader(images, batch_size=None))
    assert module.norm.running_mean.item() == pytest.approx(sum(range(7, 17)) / 10)


def test_processes_share_their_statistics_after_each_batch(monkeypatch):
    """Otherwise, a run of two processes that resumes between these batches would lose those of the second one."""
    module, shared = Normalised(), []
    (average,) = Optimisation(0.1, ema_decay=0.9).callbacks()
    images = [{"image": torch.tensor([[n - 1.0], [n + 1.0]])} for n in range(15)]
    trainer = Trainer(max_epochs=1, callbacks=[average], use_distributed_sampler=False, **QUIET)
    monkeypatch.setattr(Trainer, "world_size", 2)

    def reduce(values, reduce_op):
        shared.append(reduce_op)
        return torch.full_like(values, 3.0)

    monkeypatch.setattr(trainer.strategy, "reduce", reduce)
    trainer.fit(module, DataLoader(images, batch_size=None))
    assert shared.count("mean") == 10
    assert (module.norm.running_mean.item(), module.norm.running_var.item()) == (3, 3)
