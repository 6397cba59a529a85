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
# Options whose values only repeat a training, and the plural noun for these values. Reports give the mean over them.
REPEATS = {"seed_everything": "seeds", "data.fold": "folds"}
ANY_SEED = IntDistribution(0, 2**32 - 1)


@dataclass(frozen=True)
class Plan:
    """Config of a sweep or comparison: task, search space and search method.

    Attributes:
        task: "classification" or "detection".
        config: file name or path of the task's training config.
        space: the search space, a dictionary from an option of ``fit`` to the distribution of its values.
        points: list with one dictionary for each trial. In a grid, it maps each option in ``space`` to its value in the
            trial. With other samplers, it is empty, because they choose the values when the trial starts.
        options: dictionary from an option of ``fit`` to the value that all trials share.
        models: dictionary from the label of each compared model to its options. The labels are the values of the
            parameter "model" in ``space``. Empty if ``space`` has no such parameter.
        metric: the score or loss to optimise, a column of ``metrics.csv``.
        direction: "maximize" or "minimize".
        score: the epoch by which a trial is rated, "best" or "last".
        sampler: "tpe", "random" or "grid".
        pruner: options of Optuna's median pruner, which stops unpromising trials early. The pruner waits until
            ``n_startup_trials`` trials have finished, and stops a trial only from its epoch ``n_warmup_steps`` on.
            None: no pruner.
        seed: the seed of the sampler.
        runs: the folder of the runs, which several sweeps can share; None for the output folder of the sweep.
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
        """Name of the score in figures and tables, such as "val/top1, best epoch"."""
        return f"{self.metric}, {self.score} epoch"

    def arguments(self, params: dict) -> list[str]:
        """Return a list of the ``fit`` arguments for one trial, without the options for folder and name of the run."""
        own = {name: value for name, value in params.items() if name != "model"}
        return ["--config", self.config, *as_arguments(self.options | own | self.models.get(params.get("model"), {}))]

    def run_name(self, number: int, params: dict) -> str:
        """Return the name of the run of a trial.

        If several sweeps share a folder of runs, the name consists of the parameters. Trials with the same parameters
        then share one run, even if they are in different sweeps.

        Args:
            number: number of the trial.
            params: dictionary from the options in ``space`` to the values of the trial.
        """
        return plain(shown_params(params)) if self.runs or self.models else f"trial-{number}"

    def identity(self) -> dict:
        """Return a dictionary of the settings that must not change when a sweep is continued, as JSON values.

        The entries ``points`` and ``runs`` are None, because they may change: trials, and the seeds or folds of a grid,
        can be added later.
        """
        space = {name: distributions.distribution_to_json(domain) for name, domain in self.space.items()}
        return json.loads(json.dumps(vars(self) | {"space": space, "points": None, "runs": None}))


def read_plan(path: Path, trials: int | None = None) -> Plan:
    """Read the config file of a sweep.

    Args:
        path: path of the file.
        trials: number of trials, which replaces the number in the file. In a grid, only the first ``trials`` points are
            used. None: the number in the file, or all points of a grid.

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
    """Read the config file of a comparison.

    Args:
        path: path of the file.
        seeds: seeds that replace those in the file. None: the seeds in the file.

    Returns:
        A tuple (plan, split). The split is "val", or "test" to also score the best checkpoints on the test data.

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
    """Return all combinations of values as a list of dictionaries from option to value.

    The list begins with all combinations that have the first seed or fold, then those with the second one, and so on.

    Args:
        values: dictionary from an option to its values.
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
            space[name] = ANY_SEED  # so that seeds and folds can be added when the sweep is continued
    return Plan(**content, points=_grid_points(values)[:trials])


def _domain(where: str, given: object) -> BaseDistribution:
    given = given["choices"] if isinstance(given, dict) and set(given) == {"choices"} else given
    if isinstance(given, list):
        if not given or len(set(map(json.dumps, given))) < len(given):
            raise InputError(f"{where}: give at least one value, and no value twice")
        # Optuna cannot store lists: a list is stored as the text of a command-line argument.
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
