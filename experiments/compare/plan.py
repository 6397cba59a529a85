"""Read the config of a comparison and list the training runs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from experiments.runs import Training, as_arguments, plain, read_config
from mobile_former.errors import InputError
from mobile_former.training.run.folder import RunFolder


@dataclass(frozen=True)
class Plan:
    """A comparison: its task, models and seeds.

    Attributes:
        task: "classification" or "detection".
        config: the recipe, one of the task's training configs.
        models: the options of each model, by label.
        seeds: the seeds; each model is trained once with each seed.
        options: the options that all runs share.
        split: "val" for validation scores only, or "test" to score each best checkpoint on the test data as well.
    """

    task: str
    config: str
    models: dict[str, dict]
    seeds: list[int]
    options: dict = field(default_factory=dict)
    split: str = "val"


@dataclass(frozen=True)
class Run(Training):
    """One training of a model.

    Attributes:
        label: the label of the model.
        seed: the random seed.
    """

    label: str
    seed: int


def read_plan(path: Path) -> Plan:
    """Read a comparison's config.

    Raises:
        InputError: the file is not the config of a comparison.
    """
    names = list(Plan.__dataclass_fields__)
    plan = Plan(**read_config(path, names, names[:4], "comparison"))
    if plan.split not in {"val", "test"}:
        raise InputError(f"{path}: split is {plan.split!r}: choose 'val' or 'test'")
    if not isinstance(plan.models, dict) or not all(isinstance(own, dict) and own for own in plan.models.values()):
        raise InputError(f"{path}: models must map each label to its options, such as 'ResNet: {{model.name: …}}'")
    if not isinstance(plan.seeds, list) or not all(type(seed) is int for seed in plan.seeds):
        raise InputError(f"{path}: seeds must be a list of whole numbers")
    folders = [plain(label) for label in plan.models]
    if twice := [folder for folder in folders if folders.count(folder) > 1]:
        raise InputError(f"{path}: two labels give the same folder name {twice[0]!r}: rename one of them")
    return plan


def plan_runs(plan: Plan, output: Path, others: Sequence[str]) -> list[Run]:
    """Return all runs, ordered by seed: an interrupted comparison thus still has every model, with fewer seeds."""
    runs = []
    for seed in plan.seeds:
        for label, own in plan.models.items():
            name = f"{plain(label)}-seed{seed}"
            arguments = ["--config", plan.config, "--seed_everything", str(seed)]
            arguments += as_arguments({**plan.options, **own})
            folder = RunFolder(output / plan.task / name)
            log = output / "logs" / f"{name}.log"
            runs.append(Run(plan.task, folder, [*arguments, *others], log, label, seed))
    return runs
