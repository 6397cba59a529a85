"""Read the config of a comparison, and list its training runs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from experiments.runs import Training, as_arguments, plain, read_config
from mobile_former.errors import InputError
from mobile_former.training.run.folder import RunFolder


@dataclass(frozen=True)
class Plan:
    """Config of a comparison: the models to train, the seeds and the common options.

    Attributes:
        task: "classification" or "detection".
        config: one of the task's training configs, which all runs use.
        models: dictionary from the label of a model to the dictionary of its options.
        seeds: random seeds. Each model is trained once with each seed.
        options: dictionary of further options of all runs.
        split: "val" to compare validation scores only, or "test" to score the best checkpoints on the test data too.
    """

    task: str
    config: str
    models: dict[str, dict]
    seeds: list[int]
    options: dict = field(default_factory=dict)
    split: str = "val"


@dataclass(frozen=True)
class Run(Training):
    """Training of one model with one seed.

    Attributes:
        label: label of the model.
        seed: random seed.
    """

    label: str
    seed: int


def read_plan(path: Path) -> Plan:
    """Read the config file of a comparison.

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
    """Return the list of all training runs, ordered by seed.

    Due to this order, all models of an interrupted comparison have about the same number of finished runs. These
    numbers differ by at most one.

    Args:
        plan: config of the comparison.
        output: folder for the runs and their logs.
        others: further command-line options for every run.
    """
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
