"""Read the config of a sweep: the search space, the search method and the options of each trial."""

import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from optuna import distributions
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from experiments.runs import MODULES, as_arguments, plain, read_config
from mobile_former.errors import InputError, first_line, nearest

CHOICES = {"direction": ("maximize", "minimize"), "score": ("best", "last"), "sampler": ("tpe", "random", "grid")}
PRUNER = {"startup_trials": 5, "warmup_epochs": 1}  # defaults
REPEATS = ("seed_everything",)  # options that repeat a setting: reports have the mean over their values
ANY_SEED = IntDistribution(0, 2**32 - 1)


@dataclass(frozen=True)
class Plan:
    """A sweep: its task, search space and search method.

    Attributes:
        task: "classification" or "detection".
        config: file name or path of the task's training config.
        space: the search space, a dictionary from an option of ``fit`` to the distribution of its values.
        points: one dictionary for each trial, with the parameters that are fixed before it starts. In a grid, these are
            all parameters. With other samplers, the dictionaries are empty.
        options: dictionary from an option of ``fit`` to the value that all trials share.
        models: dictionary from each value of the parameter "model" to the options that it stands for. Empty: the space
            has options only.
        metric: the score or loss to optimise, a column of ``metrics.csv``.
        direction: "maximize" or "minimize".
        score: "best" to rate a trial by its best epoch, or "last" to rate it by its last epoch.
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
    space: dict[str, BaseDistribution]
    points: list[dict]
    options: dict = field(default_factory=dict)
    models: dict[str, dict] = field(default_factory=dict)
    metric: str = ""
    direction: str = "maximize"
    score: str = "best"
    sampler: str = "tpe"
    pruner: dict | None = None
    seed: int = 0
    runs: str | None = None

    @property
    def score_label(self) -> str:
        """The name of the score as shown in figures and tables, such as "val/top1, best epoch"."""
        return f"{self.metric}, {self.score} epoch"

    def arguments(self, params: dict) -> list[str]:
        """Return the command-line arguments of ``fit`` for one trial, without the folder and name of the run."""
        options = {name: value for name, value in params.items() if name != "model"}
        return ["--config", self.config, *as_arguments(self.options | options | self.models.get(params.get("model"), {}))]

    def run_name(self, number: int, params: dict) -> str:
        """Return the name of a trial's run. In a shared folder, the same run has the same name in every sweep."""
        return plain(shown_params(params)) if self.runs or self.models else f"trial-{number}"

    def identity(self) -> dict:
        """Return the settings that must be equal in all calls of a sweep, in types that JSON preserves.

        The number of trials, the seeds of a grid and the folder of the runs may change.
        """
        space = {name: distributions.distribution_to_json(domain) for name, domain in self.space.items()}
        return json.loads(json.dumps(vars(self) | {"space": space, "points": None, "runs": None}))


def read_plan(path: Path, trials: int | None = None) -> Plan:
    """Read a sweep's config.

    Args:
        path: path of the YAML file.
        trials: number of trials, or of a grid's first points. None: the number in the config, or all points.

    Raises:
        InputError: the file is not the config of a sweep, or ``trials`` is less than 1.
    """
    known = {*Plan.__dataclass_fields__, "trials"} - {"points", "models"}
    content = read_config(path, sorted(known), ("task", "config", "space"), "sweep")
    _require_whole("--trials", 1 if trials is None else trials, 1)
    try:
        return _plan(content, trials)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def grid_points(values: dict[str, Sequence]) -> list[dict]:
    """Return all combinations of the values of options: all with the first seed, then all with the second, and so on.

    After the first seed of an interrupted grid, every combination has a result.
    """
    names = sorted(values, key=lambda name: name not in REPEATS)
    return [dict(zip(names, point, strict=True)) for point in itertools.product(*map(values.get, names))]


def _plan(content: dict, trials: int | None) -> Plan:
    for name in ("space", "options"):
        if not isinstance(content.setdefault(name, {}), dict):
            raise InputError(f"{name} must map options to values, such as 'model.learning_rate: …'")
    content.setdefault("metric", MODULES[content["task"]].monitor)
    content.setdefault("direction", "minimize" if "loss" in str(content["metric"]) else "maximize")
    for name, known in CHOICES.items():
        if content.setdefault(name, known[0]) not in known:
            raise InputError(f"{name} is {content[name]!r}: {nearest(str(content[name]), known)}")
    if twice := content["space"].keys() & content["options"].keys():
        raise InputError(f"{min(twice)} is in both space and options: remove it from one of them")
    budget = content.pop("trials", None)
    _require_whole("trials", 20 if budget is None else budget, 1)
    _require_whole("seed", content.get("seed", 0), 0)
    pruner = content.get("pruner", True)
    content["pruner"] = _pruner({} if pruner is True else pruner)
    space = content["space"] = {name: _domain(f"space, {name}", given) for name, given in content["space"].items()}
    if content["sampler"] != "grid":
        return Plan(**content, points=[{}] * (trials or budget or 20))
    if budget is not None:
        raise InputError("trials is given, but a grid has one trial for each of its points: remove it")
    values = {name: _grid_values(name, domain) for name, domain in space.items()}
    for name in set(REPEATS) & space.keys():
        if all(type(value) is int for value in values[name]):
            space[name] = ANY_SEED  # so that a later call may add seeds
    return Plan(**content, points=grid_points(values)[:trials])


def _domain(where: str, given: object) -> BaseDistribution:
    if isinstance(given, dict) and set(given) == {"choices"}:
        given = given["choices"]
    if isinstance(given, list):
        if not given or len(set(map(json.dumps, given))) < len(given):
            raise InputError(f"{where}: give at least one value, and no value twice")
        # Optuna stores plain values only: a list is passed as the command line's text.
        return CategoricalDistribution([json.dumps(value) if isinstance(value, list) else value for value in given])
    if not isinstance(given, dict):
        raise InputError(f"{where}: give a list of values, or {{low: …, high: …}}")
    numbers = {key: _number(value) for key, value in given.items()}
    whole = not any(isinstance(value, float) for value in numbers.values())
    try:
        return (IntDistribution if whole else FloatDistribution)(**numbers)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{where}: {first_line(error)}; give the numbers low and high, and optionally step, or log: true"
        ) from None


def _number(value: object) -> object:
    """Convert a string to a float if it is a number: YAML reads numbers such as 1e-3 as strings."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _grid_values(name: str, domain: BaseDistribution) -> list:
    if isinstance(domain, CategoricalDistribution):
        return list(domain.choices)
    if domain.log or domain.step is None:
        raise InputError(f"space, {name}: a grid needs a step or a list of values")
    return [domain.low + number * domain.step for number in range(round((domain.high - domain.low) / domain.step) + 1)]


def _pruner(given: object) -> dict | None:
    if given is False:
        return None
    if not isinstance(given, dict) or given.keys() - PRUNER.keys():
        raise InputError(f"pruner is {given!r}: give true, false, or {', '.join(PRUNER)}")
    for name, value in given.items():
        _require_whole(f"pruner: {name}", value, 0)
    return PRUNER | given


def _require_whole(name: str, value: object, least: int) -> None:
    if type(value) is not int or value < least:
        raise InputError(f"{name} is {value!r}: give a whole number of at least {least}")


def short_names(names: Iterable[str]) -> list[str]:
    """Return the part after the last dot of each option, or the whole option if two options share that part."""
    names = list(names)
    last = [name.rpartition(".")[2] for name in names]
    return [short if last.count(short) == 1 else name for name, short in zip(names, last, strict=True)]


def shown_params(params: dict) -> str:
    """Return the parameters of a trial and their values in one line of text."""
    pairs = zip(short_names(params), params.values(), strict=True)
    return ", ".join(f"{name} {shown_value(value)}" for name, value in pairs)


def shown_value(value: object) -> str:
    """Return a parameter's value as text. A float has three significant digits, and None becomes "none"."""
    return "none" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
