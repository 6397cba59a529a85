"""Fixtures for the tests of experiments."""

from pathlib import Path

import pytest
import torch

from classification.module import ClassificationModule
from detection.module import DetectionModule

OPTIONS = {"focal": True, "refine_boxes": True, "dense_head": True, "choose_queries": True}
DATA = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    """Checkpoints of an untrained classifier, E2E-MF and RetinaNet, with class names in several scripts."""
    folder = tmp_path_factory.mktemp("checkpoints")
    names = ["猫", "a$b_{c}$", "собака"]
    torch.manual_seed(0)
    modules = {
        "classifier": (ClassificationModule(names, name="mobile_former_26m"), {"image_size": 64, "crop_fraction": 0.9}),
        "detector": (DetectionModule(names, name="e2e_mf_26m", **OPTIONS), {"short_side": 64, "longest": 96}),
        "retinanet": (DetectionModule(names, name="retinanet_mf_26m"), {"short_side": 64, "longest": 96}),
    }
    modules["retinanet"][0].model.classify.bias.data.zero_()  # an untrained RetinaNet would detect nothing
    paths = {}
    for name, (module, options) in modules.items():
        paths[name] = folder / f"{name}.ckpt"
        content = {
            "state_dict": module.state_dict(),
            "hyper_parameters": dict(module.hparams),
            "datamodule_hyper_parameters": DATA | options,
        }
        torch.save(content, paths[name])
    return paths
