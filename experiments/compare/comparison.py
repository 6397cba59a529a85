"""Read the config of a comparison, a sweep over a list of models and seeds."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from optuna.distributions import CategoricalDistribution

from experiments.runs import MODULES, as_arguments, plain, read_config
from experiments.sweep.plan import ANY_SEED, Plan, grid_points
from mobile_former.errors import InputError


@dataclass(frozen=True)
class Comparison(Plan):
    """A comparison: a sweep whose trials are the runs of each model with each seed.

    Attributes:
        models: dictionary from the label of a model to the dictionary of its options.
        split: "val" to compare validation scores only, or "test" to score the best checkpoints on the test data too.
    """

    models: dict[str, dict] = field(default_factory=dict)
    split: str = "val"

    def arguments(self, params: dict) -> list[str]:
        """Return the command-line arguments of ``fit`` for one run, without the folder and name of the run."""
        seed = str(params["seed_everything"])
        options = as_arguments({**self.options, **self.models[params["model"]]})
        return ["--config", self.config, "--seed_everything", seed, *options]

    def run_name(self, number: int, params: dict) -> str:
        """Return the name of a run: its model and seed."""
        return f"{plain(params['model'])}-seed{params['seed_everything']}"

    def identity(self) -> dict:
        """Return the settings that must be equal in all calls of a comparison. The split and the seeds may change."""
        return super().identity() | {"split": None}


def read_comparison(path: Path, seeds: Sequence[int] | None = None) -> Comparison:
    """Read the config file of a comparison.

    Args:
        path: path of the YAML file.
        seeds: random seeds; None for those of the config.

    Raises:
        InputError: the file is not the config of a comparison.
    """
    names = ("task", "config", "models", "seeds", "options", "split")
    content = read_config(path, names, names[:4], "comparison")
    models, known = content["models"], content.pop("seeds")
    if content.get("split", "val") not in {"val", "test"}:
        raise InputError(f"{path}: split is {content['split']!r}: choose 'val' or 'test'")
    if not isinstance(models, dict) or not all(isinstance(own, dict) and own for own in models.values()):
        raise InputError(f"{path}: models must map each label to its options, such as 'ResNet: {{model.name: …}}'")
    if not isinstance(known, list) or not all(type(seed) is int for seed in known):
        raise InputError(f"{path}: seeds must be a list of whole numbers")
    folders = [plain(label) for label in models]
    if twice := [folder for folder in folders if folders.count(folder) > 1]:
        raise InputError(f"{path}: two labels give the same folder name {twice[0]!r}: rename one of them")
    space = {"model": CategoricalDistribution(list(models)), "seed_everything": ANY_SEED}
    points = grid_points({"model": list(models), "seed_everything": list(dict.fromkeys(seeds or known))})
    metric = MODULES[content["task"]].monitor
    return Comparison(**content, space=space, points=points, metric=metric, score="last", sampler="grid")
