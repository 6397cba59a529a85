"""Read the config of a sweep: the search space, the search method and the options of each trial."""

import argparse
import itertools
import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from experiments.runs import MODULES, as_arguments, read_config
from mobile_former.errors import InputError, nearest

DIRECTIONS = ("maximize", "minimize")
SCORES = ("best", "last")
SAMPLERS = ("tpe", "random", "grid")
PRUNER_DEFAULTS = {"startup_trials": 5, "warmup_epochs": 1}
MACHINE_OPTIONS = ("data.root", "data.num_workers")  # may differ between the machines of a sweep


@dataclass(frozen=True)
class Range:
    """A range of numbers that includes both ``low`` and ``high``.

    Attributes:
        low: the lowest number.
        high: the highest number.
        log: whether numbers are sampled uniformly on a logarithmic scale. False: on a linear scale.
        step: the distance between neighbouring numbers, starting at ``low``. None: the range has every integer if
            both limits are integers, and otherwise every real number.
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None

    @property
    def is_whole(self) -> bool:
        """Whether all numbers of the range are integers."""
        return all(type(value) is int for value in (self.low, self.high, self.step or 1))

    def values(self) -> list[float] | None:
        """Return a list of all numbers in the range, or None if the range is continuous or logarithmic."""
        step = self.step or (1 if self.is_whole and not self.log else None)
        if step is None:
            return None
        count = math.floor((self.high - self.low) / step + 1e-9) + 1
        return [self.low + number * step for number in range(count)]


@dataclass(frozen=True)
class Plan:
    """A sweep: its task, search space and search method.

    Attributes:
        task: "classification" or "detection".
        config: file name or path of the task's training config.
        space: the search space, a dictionary from an option of ``fit`` to its allowed values: a list, or a
            :class:`Range` of numbers.
        options: dictionary from an option of ``fit`` to the value that all trials share.
        metric: the score or loss to optimise, a column of ``metrics.csv``.
        direction: "maximize" or "minimize".
        score: "best" to rate a trial by its best epoch, or "last" to rate it by its last epoch.
        trials: the number of trials. A grid trains only its first ``trials`` combinations, or all of them if it is
            None.
        sampler: "tpe", "random" or "grid".
        pruner: dictionary with ``startup_trials`` and ``warmup_epochs`` of Optuna's median pruner. No trial is pruned
            (stopped early) before ``startup_trials`` trials have finished, or in its own first ``warmup_epochs``
            epochs. None disables pruning.
        seed: the seed of the sampler.
        runs: the folder of the training runs; None for the output folder of the sweep. Several sweeps may share a
            folder. A run that occurs in several sweeps is then trained once.
    """

    task: str
    config: str
    space: dict[str, Range | list]
    options: dict = field(default_factory=dict)
    metric: str = ""
    direction: str = ""
    score: str = "best"
    trials: int | None = 20
    sampler: str = "tpe"
    pruner: dict | None = None
    seed: int = 0
    runs: str | None = None

    @property
    def score_label(self) -> str:
        """The name of the score as shown in figures and tables, such as "val/top1, best epoch"."""
        return f"{self.metric}, {self.score} epoch"

    def points(self) -> list[dict]:
        """Return a list of dictionaries, one for each trial, with the hyperparameters that are fixed before it starts.

        In a grid, a dictionary has all hyperparameters. With other samplers, it is empty. A grid runs all combinations
        with the first seed, then all with the second, and so on. If it is interrupted after the first seed, every
        combination has a result.
        """
        if self.sampler != "grid":
            return [{} for _ in range(self.trials)]
        names = sorted(self.space, key=lambda name: name != "seed_everything")
        values = [choices if isinstance(choices, list) else choices.values() for choices in map(self.space.get, names)]
        points = [dict(zip(names, point, strict=True)) for point in itertools.product(*values)]
        return points[: self.trials]


def read_plan(path: Path) -> Plan:
    """Read a sweep's config.

    Raises:
        InputError: the file is not the config of a sweep.
    """
    content = read_config(path, list(Plan.__dataclass_fields__), ("task", "config", "space"), "sweep")
    try:
        return _plan(content)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _plan(content: dict) -> Plan:
    for name in ("space", "options"):
        if not isinstance(content.get(name, {}), dict):
            raise InputError(f"{name} must map options to values, such as 'model.learning_rate: …'")
    metric = content.setdefault("metric", MODULES[content["task"]].monitor)
    content.setdefault("direction", "minimize" if "loss" in str(metric) else "maximize")
    for name, known in (("direction", DIRECTIONS), ("score", SCORES), ("sampler", SAMPLERS)):
        if content.get(name, known[0]) not in known:
            raise InputError(f"{name} is {content[name]!r}: {nearest(str(content[name]), known)}")
    grid = content.get("sampler") == "grid"
    if grid and "trials" in content:
        raise InputError("trials is given, but a grid has one trial for each of its points: remove it")
    if grid:
        content["trials"] = None
    for name, least in (("trials", 1), ("seed", 0)):
        if content.get(name) is not None and (type(content[name]) is not int or content[name] < least):
            raise InputError(f"{name} is {content[name]!r}: give a whole number of at least {least}")
    content["space"] = {name: _domain(name, given, grid=grid) for name, given in content["space"].items()}
    if twice := content["space"].keys() & content.get("options", {}).keys():
        raise InputError(f"{min(twice)} is in both space and options: remove it from one of them")
    content["pruner"] = _pruner(content.get("pruner", True))
    return Plan(**content)


def _domain(name: str, given: object, *, grid: bool) -> Range | list:
    if isinstance(given, dict) and set(given) == {"choices"}:
        given = given["choices"]
    if isinstance(given, list):
        if not given or len({json.dumps(value) for value in given}) < len(given):
            raise InputError(f"space, {name}: give at least one value, and no value twice")
        # Optuna stores plain values only: a list is passed as the command line's text.
        return [value if isinstance(value, str | int | float | None) else json.dumps(value) for value in given]
    if not isinstance(given, dict):
        raise InputError(f"space, {name}: give a list of values, or {{low: …, high: …}}")
    known = list(Range.__dataclass_fields__)
    for key in given:
        if key not in known:
            raise InputError(f"space, {name}: {key!r} is not known: {nearest(str(key), [*known, 'choices'])}")
    given = {key: _number(value) if key != "log" else value for key, value in given.items()}
    if missing := [key for key in ("low", "high") if key not in given]:
        raise InputError(f"space, {name} lacks {' and '.join(missing)}")
    for key, value in given.items():
        if type(value) not in ((bool,) if key == "log" else (int, float)):
            wanted = "true or false" if key == "log" else "a number"
            raise InputError(f"space, {name}: {key} is {value!r}: give {wanted}")
    domain = Range(**given)
    if not domain.low < domain.high:
        raise InputError(f"space, {name}: low {domain.low} must be less than high {domain.high}")
    if domain.log and (domain.low <= 0 or domain.step is not None):
        raise InputError(f"space, {name}: log needs a low above 0 and no step")
    if domain.step is not None and domain.step <= 0:
        raise InputError(f"space, {name}: step is {domain.step}: give a number above 0")
    if grid and domain.values() is None:
        raise InputError(f"space, {name}: a grid needs a step or a list of values")
    return domain


def _number(value: object) -> object:
    """Convert a string to a float if it is a number. Return any other value unchanged.

    YAML reads numbers such as 1e-3 as strings.
    """
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _pruner(given: object) -> dict | None:
    if isinstance(given, bool):
        return dict(PRUNER_DEFAULTS) if given else None
    if not isinstance(given, dict):
        raise InputError(f"pruner is {given!r}: give true, false, or {', '.join(PRUNER_DEFAULTS)}")
    for name, value in given.items():
        if name not in PRUNER_DEFAULTS:
            raise InputError(f"pruner: {name!r} is not known: {nearest(str(name), PRUNER_DEFAULTS)}")
        if type(value) is not int or value < 0:
            raise InputError(f"pruner: {name} is {value!r}: give a whole number of at least 0")
    return PRUNER_DEFAULTS | given


def require_free_options(plan: Plan, others: Sequence[str]) -> None:
    """Check that the command line has no option that the sweep sets itself.

    Raises:
        InputError: the sweep sets one of the options.
    """
    given = {word.partition("=")[0].removeprefix("--") for word in others if word.startswith("--")}
    for name in sorted(given & {*plan.space, "name", "runs_folder", "ckpt_path", "config"}):
        raise InputError(f"--{name} is set by the sweep for each trial: remove it")


def trial_arguments(plan: Plan, params: dict, others: Sequence[str]) -> list[str]:
    """Return the command-line arguments of ``fit`` for one trial, without the folder and name of the run."""
    return ["--config", plan.config, *as_arguments({**plan.options, **params}), *others]


def identity(plan: Plan, others: Sequence[str]) -> dict:
    """Return a dictionary of the settings that must be equal in all workers and calls of a sweep.

    The settings come from the config and from the command line. The number of trials is left out, because a later call
    may raise it. The folder of the runs and the options that may differ between machines are left out too.
    """
    same = {name: value for name, value in asdict(plan).items() if name not in {"trials", "runs"}}
    return json.loads(json.dumps(same | {"command line": shlex.join(without_machine_options(others))}))


def without_machine_options(arguments: Sequence[str]) -> list[str]:
    """Return command-line arguments without the options that may differ between the machines of a sweep.

    These options are the folder of the data and the number of data-loading workers.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for option in MACHINE_OPTIONS:
        parser.add_argument(f"--{option}", nargs="?")
    return parser.parse_known_args(arguments)[1]


def short_names(names: Sequence[str]) -> list[str]:
    """Return a list with a short name for each option: the part after the last dot.

    If two options share that part, both keep their full names.
    """
    last = [name.rpartition(".")[2] for name in names]
    return [short if last.count(short) == 1 else name for name, short in zip(names, last, strict=True)]


def shown_params(params: dict) -> str:
    """Return the parameters of a trial and their values in one line of text."""
    pairs = zip(short_names(list(params)), params.values(), strict=True)
    return ", ".join(f"{name} {shown_value(value)}" for name, value in pairs)


def shown_value(value: object) -> str:
    """Return a parameter's value as text. A float has three significant digits, and None becomes "none"."""
    if value is None:
        return "none"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
