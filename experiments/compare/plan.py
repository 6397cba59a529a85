"""The config of a comparison, and its runs."""

import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from experiments.runs import (
    Training,
    as_arguments,
    last_error,
    plain,
    read_config,
)
from mobile_former.errors import InputError
from mobile_former.training.run.folder import RunFolder


@dataclass(frozen=True)
class Plan:
    """What is compared.

    Attributes:
        task: "classification" or "detection".
        config: the recipe, one of the task's configs.
        models: for each label the options that are its own.
        seeds: each model is trained once with each.
        options: of all runs.
        split: "val", or "test" to score the best checkpoint there as well.
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
        label: of the model.
        seed: of everything random.
    """

    label: str
    seed: int


def read_plan(path: Path) -> Plan:
    """Read a comparison's config.

    Raises:
        InputError: not a config of a comparison.
    """
    names = list(Plan.__dataclass_fields__)
    plan = Plan(**read_config(path, names, names[:4], "comparison"))
    if plan.split not in {"val", "test"}:
        raise InputError(f"{path}: split is {plan.split!r}: choose 'val' or 'test'")
    if not isinstance(plan.models, dict) or not all(isinstance(own, dict) and own for own in plan.models.values()):
        raise InputError(f"{path}: models must give each label its options, as 'ResNet: {{model.name: …}}'")
    if not isinstance(plan.seeds, list) or not all(type(seed) is int for seed in plan.seeds):
        raise InputError(f"{path}: seeds must be a list of whole numbers")
    if len(set(map(plain, plan.models))) < len(plan.models):
        raise InputError(f"{path}: two models' labels give the same folder, such as {plain(next(iter(plan.models)))!r}")
    return plan


def plan_runs(plan: Plan, output: Path, others: Sequence[str]) -> list[Run]:
    """All runs, seed by seed, so that a comparison that is cut short has all models at fewer seeds."""
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


def train(run: Run) -> int:
    """Train in a process of its own; returns its exit status."""
    run.log.parent.mkdir(parents=True, exist_ok=True)
    with run.log.open("a") as log:
        log.write(f"$ {shlex.join(run.command)}\n")
        with subprocess.Popen(
            run.command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        ) as process:
            for line in process.stdout:
                log.write(line)
                log.flush()
                if line.startswith("epoch "):
                    print(f"    {line.rstrip()}", flush=True)
    if process.returncode:
        print(f"    failed: {last_error(run.log)}", flush=True)
    return process.returncode
