"""Read the config of a comparison, a sweep over a list of models and seeds."""

from collections.abc import Sequence
from pathlib import Path

from optuna.distributions import CategoricalDistribution

from experiments.options import plain, read_config
from experiments.runs import MODULES
from experiments.sweep.plan import ANY_SEED, Plan, grid_points
from mobile_former.errors import InputError


def read_plan(path: Path, seeds: Sequence[int] | None = None) -> tuple[Plan, str]:
    """Read the config file of a comparison, with other ``seeds`` if they are given.

    Returns:
        A tuple of the sweep, and the split: "val" to compare validation scores only, or "test" to score the best
        checkpoints on the test data too.

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
    points = grid_points({"model": list(models), "seed_everything": list(dict.fromkeys(seeds or known))})
    space = {"model": CategoricalDistribution(list(models)), "seed_everything": ANY_SEED}
    metric = MODULES[content["task"]].monitor
    return Plan(**content, space=space, points=points, metric=metric, score="last", sampler="grid"), split
