"""Read the config of a sweep or a comparison: the trials, their options and the search method."""

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from optuna import distributions
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from experiments.options import as_arguments, plain, read_config, require_whole
from experiments.runs import MODULES
from experiments.tables import shown_params
from mobile_former.errors import InputError, first_line, nearest

CHOICES = {"direction": ("maximize", "minimize"), "score": ("best", "last"), "sampler": ("tpe", "random", "grid")}
PRUNER = {"startup_trials": 5, "warmup_epochs": 1}  # defaults
# Options that repeat a setting, and the name of their values: reports have the mean over the values.
REPEATS = {"seed_everything": "seeds", "data.fold": "folds"}
ANY_SEED = IntDistribution(0, 2**32 - 1)


@dataclass(frozen=True)
class Plan:
    """A sweep: its task, search space and search method.

    Attributes:
        task: "classification" or "detection".
        config: file name or path of the task's training config.
        space: the search space, a dictionary from an option of ``fit`` to the distribution of its values.
        points: a dictionary for each trial: its parameters in a grid; empty with the other samplers, which choose them.
        options: dictionary from an option of ``fit`` to the value that all trials share.
        models: dictionary from each value of the parameter "model" to the options that it sets; empty in a sweep.
        metric: the score or loss to optimise, a column of ``metrics.csv``.
        direction: "maximize" or "minimize".
        score: the epoch by which a trial is rated, "best" or "last".
        sampler: "tpe", "random" or "grid".
        pruner: options of Optuna's median pruner, which stops poor trials early; None for no pruner. It needs
            ``n_startup_trials`` complete trials, and stops no trial before epoch ``n_warmup_steps``.
        seed: the seed of the sampler.
        runs: the folder of the runs, which several sweeps may share; None for the output folder of the sweep.
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
        own = {name: value for name, value in params.items() if name != "model"}
        return ["--config", self.config, *as_arguments(self.options | own | self.models.get(params.get("model"), {}))]

    def run_name(self, number: int, params: dict) -> str:
        """Return the name of a trial's run: its parameters in a comparison or a shared folder, otherwise its number."""
        return plain(shown_params(params)) if self.runs or self.models else f"trial-{number}"

    def identity(self) -> dict:
        """Return the settings that must not change during a sweep, as JSON values. Trials and seeds may be added."""
        space = {name: distributions.distribution_to_json(domain) for name, domain in self.space.items()}
        return json.loads(json.dumps(vars(self) | {"space": space, "points": None, "runs": None}))


def read_plan(path: Path, trials: int | None = None) -> Plan:
    """Read a sweep's config. ``trials`` replaces its number of trials, or limits a grid to its first points.

    Raises:
        InputError: the file is not the config of a sweep, or ``trials`` is less than 1.
    """
    known = {*Plan.__dataclass_fields__, "trials"} - {"points", "models"}
    content = read_config(path, sorted(known), ("task", "config", "space"), "sweep")
    require_whole("--trials", 1 if trials is None else trials, 1)
    try:
        return _plan(content, trials)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def read_comparison(path: Path, seeds: Sequence[int] | None = None) -> tuple[Plan, str]:
    """Read the config file of a comparison. If ``seeds`` are given, they replace those in the file.

    Returns:
        A tuple (plan, split). The split is "val", or "test" to score the best checkpoints on the test data too.

    Raises:
        InputError: the file is not the config of a comparison.
    """
    names = ("task", "config", "models", "seeds", "options", "split")
    content = read_config(path, names, names[:4], "comparison")
    models, known, split = content["models"], content.pop("seeds"), content.pop("split", "val")
    if split not in {"val", "test"}:
        raise InputError(f"{path}: split is {split!r}: choose 'val' or 'test'")
    if not isinstance(models, dict) or not all(isinstance(own, dict) and own for own in models.values()):
        raise InputError(f"{path}: models must map each label to its options, such as 'ResNet: {{model.name: …}}'")
    if not isinstance(known, list) or not all(type(seed) is int for seed in known):
        raise InputError(f"{path}: seeds must be a list of whole numbers")
    folders = [plain(label) for label in models]
    if twice := [folder for folder in folders if folders.count(folder) > 1]:
        raise InputError(f"{path}: two labels give the same folder name {twice[0]!r}: rename one of them")
    points = _grid_points({"model": list(models), "seed_everything": list(dict.fromkeys(seeds or known))})
    space = {"model": CategoricalDistribution(list(models)), "seed_everything": ANY_SEED}
    metric = MODULES[content["task"]].monitor
    return Plan(**content, space=space, points=points, metric=metric, score="last", sampler="grid"), split


def _grid_points(values: dict[str, Sequence]) -> list[dict]:
    """Return all combinations of the options' values: all with the first seed, then all with the second, and so on."""
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
    budget, pruner = content.pop("trials", None), content.get("pruner", True)
    require_whole("trials", 20 if budget is None else budget, 1)
    require_whole("seed", content.get("seed", 0), 0)
    given = pruner if isinstance(pruner, dict) else {}
    if type(pruner) not in (bool, dict) or given.keys() - PRUNER.keys():
        raise InputError(f"pruner is {pruner!r}: give true, false, or {', '.join(PRUNER)}")
    for name, value in given.items():
        require_whole(f"pruner: {name}", value, 0)
    startup, warmup = (PRUNER | given).values()
    content["pruner"] = {"n_startup_trials": startup, "n_warmup_steps": warmup + 1} if pruner is not False else None
    space = content["space"] = {name: _domain(f"space, {name}", given) for name, given in content["space"].items()}
    if content["sampler"] != "grid":
        return Plan(**content, points=[{}] * (trials or budget or 20))
    if budget is not None:
        raise InputError("trials is given, but a grid has one trial for each of its points: remove it")
    values = {name: _grid_values(name, domain) for name, domain in space.items()}
    for name in REPEATS.keys() & space.keys():
        if all(type(value) is int for value in values[name]):
            space[name] = ANY_SEED  # so that a later call may add seeds and folds
    return Plan(**content, points=_grid_points(values)[:trials])


def _domain(where: str, given: object) -> BaseDistribution:
    given = given["choices"] if isinstance(given, dict) and set(given) == {"choices"} else given
    if isinstance(given, list):
        if not given or len(set(map(json.dumps, given))) < len(given):
            raise InputError(f"{where}: give at least one value, and no value twice")
        # Optuna stores plain values only: a list is passed as the command line's text.
        return CategoricalDistribution([json.dumps(value) if isinstance(value, list) else value for value in given])
    if not isinstance(given, dict):
        raise InputError(f"{where}: give a list of values, or {{low: …, high: …}}")
    try:
        # YAML reads numbers such as 1e-3 as strings.
        numbers = {key: float(value) if isinstance(value, str) else value for key, value in given.items()}
        whole = not any(isinstance(value, float) for value in numbers.values())
        return (IntDistribution if whole else FloatDistribution)(**numbers)
    except (TypeError, ValueError) as error:
        hint = "give the numbers low and high, and optionally step, or log: true"
        raise InputError(f"{where}: {first_line(error)}; {hint}") from None


def _grid_values(name: str, domain: BaseDistribution) -> list:
    if isinstance(domain, CategoricalDistribution):
        return list(domain.choices)
    if domain.log or domain.step is None:
        raise InputError(f"space, {name}: a grid needs a step or a list of values")
    return [domain.low + number * domain.step for number in range(round((domain.high - domain.low) / domain.step) + 1)]
