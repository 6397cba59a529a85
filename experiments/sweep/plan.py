"""The config of a sweep: the search space, the search method and the options of each trial."""

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
    """The numbers from ``low`` to ``high``, both included.

    Attributes:
        low: the lowest number.
        high: the highest number.
        log: whether the numbers are spread evenly on a logarithmic scale.
        step: the distance between neighbouring numbers, starting at ``low``. None allows every integer if both limits
            are integers, and every real number otherwise.
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
        """Return all numbers of the range, or None for a continuous or logarithmic range."""
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
        config: the recipe, one of the task's training configs.
        space: the search space: a :class:`Range` or a list of values for each option of ``fit`` that is searched.
        options: the options of ``fit`` that all trials share.
        metric: the score or loss to optimise, a column of ``metrics.csv``.
        direction: "maximize" or "minimize".
        score: which metric counts for a trial, that of its "best" or of its "last" epoch.
        trials: the number of trials. In a grid, only the first ``trials`` points are trained; None for all points.
        sampler: "tpe", "random" or "grid".
        pruner: ``startup_trials`` and ``warmup_epochs`` of Optuna's median pruner. No trial is pruned before
            ``startup_trials`` trials have finished, or in its first ``warmup_epochs`` epochs. None disables pruning.
        seed: the seed of the sampler.
        runs: the folder of the training runs; None for the output folder of the sweep. Several sweeps may share a
            folder: a run that occurs in several sweeps is trained once.
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

    def points(self) -> list[dict]:
        """Return the parameter values that each trial has before it starts: all of them for a grid, otherwise none.

        A grid runs all combinations with the first seed, then all with the second, and so on. If it is interrupted
        after the first seed, every combination has a result.
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
    names = list(Plan.__dataclass_fields__)
    content = read_config(path, names, ("task", "config", "space"), "sweep")
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
    choices = {"direction": DIRECTIONS, "score": SCORES, "sampler": SAMPLERS}
    for name, known in choices.items():
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
    """Convert a number such as 1e-3, which YAML reads as a string."""
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
    """Reject command-line options that the sweep sets itself.

    Raises:
        InputError: one of the options is set by the sweep.
    """
    given = {word.partition("=")[0].removeprefix("--") for word in others if word.startswith("--")}
    for name in sorted(given & {*plan.space, "name", "runs_folder", "ckpt_path", "config"}):
        raise InputError(f"--{name} is set by the sweep for each trial: remove it")


def trial_arguments(plan: Plan, params: dict, others: Sequence[str]) -> list[str]:
    """Return the arguments of ``fit`` for one trial, except the options for the folder and name of the run."""
    return ["--config", plan.config, *as_arguments({**plan.options, **params}), *others]


def identity(plan: Plan, others: Sequence[str]) -> dict:
    """Return the part of the plan and of the command line that must be equal in all workers and calls of a study.

    The number of trials is left out because a later call may raise it. The folder of the runs and
    :data:`MACHINE_OPTIONS` are left out too.
    """
    same = {name: value for name, value in asdict(plan).items() if name not in {"trials", "runs"}}
    return json.loads(json.dumps(same | {"command line": shlex.join(without_machine_options(others))}))


def without_machine_options(arguments: Sequence[str]) -> list[str]:
    """Return the arguments without :data:`MACHINE_OPTIONS`, which may differ between machines."""
    kept, words = [], list(arguments)
    while words:
        word = words.pop(0)
        if word.partition("=")[0].removeprefix("--") not in MACHINE_OPTIONS:
            kept.append(word)
        elif "=" not in word and words:
            words.pop(0)
    return kept
