"""The config of a sweep: what is searched, and each trial's options."""

import itertools
import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from experiments.runs import MODULES, as_arguments, read_config
from mobile_former.errors import InputError, nearest

SAMPLERS = ("tpe", "random", "grid")
_PRUNER = {"startup_trials": 5, "warmup_epochs": 1}
# Of a machine, not of what is trained.
_PLACES = ("data.root", "data.num_workers")


@dataclass(frozen=True)
class Range:
    """The numbers from ``low`` to ``high``, both included.

    Attributes:
        low: the least.
        high: the most.
        log: whether as much lies between 1 and 10 as between 10 and 100.
        step: what they are multiples of, from ``low`` on; None for all numbers.
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None

    @property
    def is_whole(self) -> bool:
        """Whether the numbers are whole ones."""
        return all(type(value) is int for value in (self.low, self.high, self.step or 1))

    def values(self) -> list[float] | None:
        """All numbers of the range, where they can be counted."""
        step = self.step or (1 if self.is_whole and not self.log else None)
        if step is None:
            return None
        count = math.floor((self.high - self.low) / step + 1e-9) + 1
        return [self.low + number * step for number in range(count)]


@dataclass(frozen=True)
class Plan:
    """What is searched.

    Attributes:
        task: "classification" or "detection".
        config: the recipe, one of the task's configs.
        space: for each option of the command line a :class:`Range`, or a list of values.
        options: of all trials.
        metric: a score or loss of ``metrics.csv``.
        direction: "maximize" or "minimize".
        score: which epoch's counts, the "best" or the "last".
        trials: how many; of a grid the first ones, or all where None.
        sampler: "tpe", "random" or "grid".
        pruner: of Optuna's median pruner, ``startup_trials`` and ``warmup_epochs`` before which it does nothing; None
            where trials are never cut short.
        seed: of the sampler.
        runs: folder of the trainings, which configs may share, so that what is in several of them is trained once;
            None for one of the sweep's own.
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
        """Of each trial the parameters that are fixed: of a grid all, seeds last; otherwise none."""
        if self.sampler != "grid":
            return [{} for _ in range(self.trials)]
        # Seed by seed, so that a sweep that is cut short has all settings at fewer seeds.
        names = sorted(self.space, key=lambda name: name != "seed_everything")
        values = [choices if isinstance(choices, list) else choices.values() for choices in map(self.space.get, names)]
        points = [dict(zip(names, point, strict=True)) for point in itertools.product(*values)]
        return points[: self.trials]


def read_plan(path: Path) -> Plan:
    """Read a sweep's config.

    Raises:
        InputError: not a config of a sweep.
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
            raise InputError(f"{name} must give options and their values, as 'model.learning_rate: …'")
    metric = content.setdefault("metric", MODULES[content["task"]].monitor)
    content.setdefault("direction", "minimize" if "loss" in str(metric) else "maximize")
    for name, known in (
        ("direction", ("maximize", "minimize")),
        ("score", ("best", "last")),
        ("sampler", SAMPLERS),
    ):
        if content.get(name, known[0]) not in known:
            raise InputError(f"{name} is {content[name]!r}: {nearest(str(content[name]), known)}")
    grid = content.get("sampler") == "grid"
    if grid and "trials" in content:
        raise InputError("trials is given, and a grid has as many as it has points: leave it out")
    if grid:
        content["trials"] = None
    for name, least in (("trials", 1), ("seed", 0)):
        if content.get(name) is not None and (type(content[name]) is not int or content[name] < least):
            raise InputError(f"{name} is {content[name]!r}: give a whole number from {least}")
    content["space"] = {name: _domain(name, given, grid=grid) for name, given in content["space"].items()}
    if twice := content["space"].keys() & content.get("options", {}).keys():
        raise InputError(f"{min(twice)} is in the space and in the options: leave it in one")
    content["pruner"] = _pruner(content.get("pruner", True))
    return Plan(**content)


def _domain(name: str, given: object, *, grid: bool) -> Range | list:
    if isinstance(given, dict) and set(given) == {"choices"}:
        given = given["choices"]
    if isinstance(given, list):
        if not given or len({json.dumps(value) for value in given}) < len(given):
            raise InputError(f"space, {name}: give at least one value, and each once")
        # Optuna's values are plain; a list goes as the text that the command line takes.
        return [value if isinstance(value, str | int | float | None) else json.dumps(value) for value in given]
    if not isinstance(given, dict):
        raise InputError(f"space, {name}: give a list of values, or {{low: …, high: …}}")
    known = list(Range.__dataclass_fields__)
    for key in given:
        if key not in known:
            raise InputError(f"space, {name}: {key!r} is not known: {nearest(str(key), [*known, 'choices'])}")
    given = {key: _number(value) if key != "log" else value for key, value in given.items()}
    if missing := [key for key in ("low", "high") if key not in given]:
        raise InputError(f"space, {name} lacks {', '.join(missing)}")
    for key, value in given.items():
        if type(value) not in ((bool,) if key == "log" else (int, float)):
            wanted = "true or false" if key == "log" else "a number"
            raise InputError(f"space, {name}: {key} is {value!r}: give {wanted}")
    domain = Range(**given)
    if not domain.low < domain.high:
        raise InputError(f"space, {name}: low is {domain.low} and high {domain.high}: low must be lower")
    if domain.log and (domain.low <= 0 or domain.step is not None):
        raise InputError(f"space, {name}: log needs a low above 0, and no step")
    if domain.step is not None and domain.step <= 0:
        raise InputError(f"space, {name}: step is {domain.step}: give more than 0")
    if grid and domain.values() is None:
        raise InputError(f"space, {name}: a grid needs a step, or a list of values")
    return domain


def _number(value: object) -> object:
    """YAML takes 1e-3 for a word."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _pruner(given: object) -> dict | None:
    if isinstance(given, bool):
        return dict(_PRUNER) if given else None
    if not isinstance(given, dict):
        raise InputError(f"pruner is {given!r}: give true, false, or {', '.join(_PRUNER)}")
    for name, value in given.items():
        if name not in _PRUNER:
            raise InputError(f"pruner: {name!r} is not known: {nearest(str(name), _PRUNER)}")
        if type(value) is not int or value < 0:
            raise InputError(f"pruner: {name} is {value!r}: give a whole number from 0")
    return _PRUNER | given


def require_free_options(plan: Plan, others: Sequence[str]) -> None:
    """Refuse options on the command line that the sweep itself sets.

    Raises:
        InputError: there is such an option.
    """
    given = {word.partition("=")[0].removeprefix("--") for word in others if word.startswith("--")}
    for name in sorted(given & {*plan.space, "name", "runs_folder", "ckpt_path", "config"}):
        raise InputError(f"--{name} is what the sweep itself gives each trial: leave it out")


def trial_arguments(plan: Plan, params: dict, others: Sequence[str]) -> list[str]:
    """The options of one trial's ``fit``, less its place."""
    return ["--config", plan.config, *as_arguments({**plan.options, **params}), *others]


def identity(plan: Plan, others: Sequence[str]) -> dict:
    """What all workers of a study must have in common, and all calls; the number of trials may grow."""
    same = {name: value for name, value in asdict(plan).items() if name not in {"trials", "runs"}}
    return json.loads(json.dumps(same | {"command line": shlex.join(without_places(others))}))


def without_places(arguments: Sequence[str]) -> list[str]:
    """A command line's words less what may differ from machine to machine: where data lies, loading processes."""
    kept, words = [], list(arguments)
    while words:
        word = words.pop(0)
        if word.partition("=")[0].removeprefix("--") not in _PLACES:
            kept.append(word)
        elif "=" not in word and words:
            words.pop(0)
    return kept
