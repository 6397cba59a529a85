"""Use in other programs: torch.hub, and installation by pip from git."""

import os
import subprocess
import sys
import textwrap

import pytest
import torch

import mobile_former
from tests.conftest import ROOT


def elsewhere(code: str, folder, *paths) -> str:
    """Run a program in a folder, without this repository on the path, only ``paths``; return what it prints."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"PYTHONPATH": os.pathsep.join(map(str, paths)), "TORCH_HOME": str(folder / "torch")}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_torch_hub_lists_explains_and_loads_every_model_from_a_clone(tmp_path):
    torch.manual_seed(0)
    model = mobile_former.mobile_former_26m(num_classes=10)
    mobile_former.save_weights(model, tmp_path / "ten.safetensors")
    code = f"""
        import torch

        clone = {str(ROOT)!r}
        torch.hub._get_cache_or_reload = lambda *arguments, **options: clone  # as if downloaded from GitHub
        print(torch.hub.list("owner/mobile-former", trust_repo=True))
        print(torch.hub.help("owner/mobile-former", "mobile_former_294m", trust_repo=True))
        model = torch.hub.load(
            clone, "mobile_former_26m", source="local", num_classes=10, pretrained="ten.safetensors", dropout=0.1
        )
        print(model.classifier.dropout.p, model(torch.randn(2, 3, 32, 32)).shape)
        print(model.backbone.tokens.sum().item())
    """
    names, *explained, rate_and_shape, total = elsewhere(code, tmp_path).splitlines()
    assert names == str(sorted(mobile_former.list_models()))
    assert explained[0] == "Mobile-Former-294M."
    assert any("num_classes (int): number of classes; default: 1000." in line for line in explained)
    assert rate_and_shape == "0.1 torch.Size([2, 10])"
    assert float(total) == pytest.approx(model.backbone.tokens.sum().item())


@pytest.mark.slow
def test_pip_installs_it_from_git_with_its_configs(tmp_path):
    clone, site = tmp_path / "clone", tmp_path / "site"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
    options = ["--quiet", "--no-deps", "--target", str(site)]
    command = [sys.executable, "-m", "pip", "install", *options, f"git+{clone.as_uri()}"]
    subprocess.run(command, check=True, cwd=tmp_path)
    code = """
        from pathlib import Path
        import torch
        import mobile_former, classification, detection

        print(Path(mobile_former.__file__).parents[1])
        print(mobile_former.mobile_former_26m(num_classes=3)(torch.randn(2, 3, 32, 32)).shape)
        for package in (classification, detection):
            print(len(list((Path(package.__file__).parent / "configs").glob("*.yaml"))))
    """
    where, shape, *configs = elsewhere(code, tmp_path, site).splitlines()
    assert where == str(site)
    assert shape == "torch.Size([2, 3])"
    found = [len(list((ROOT / package / "configs").glob("*.yaml"))) for package in ("classification", "detection")]
    assert list(map(int, configs)) == found
