"""What the documentation says is true, and its site is built without warnings and asks nobody for anything."""

import contextlib
import importlib.util
import io
import os
import re
import runpy
import subprocess
import sys

import pytest
import torch
import yaml

import detection
import mobile_former
from detection.data.module import DetectionData
from detection.module import DetectionModule
from detection.scenes import write_coco
from experiments.figures import madds_by_part
from tests.classification.test_export import save_checkpoint
from tests.conftest import ROOT, write_image_folder

DOCS = ROOT / "docs"
PAGES = {path.relative_to(DOCS).as_posix(): path.read_text() for path in sorted(DOCS.rglob("*.md"))}
CONFIG = re.sub(r"^hooks:.*?(?=^\w)", "", (ROOT / "mkdocs.yml").read_text(), flags=re.DOTALL | re.MULTILINE)


def test_the_navigation_leads_to_every_page_and_to_no_other():
    def targets(entries):
        for entry in entries:
            for target in entry.values():
                yield from targets(target) if isinstance(target, list) else (target,)

    named = list(targets(yaml.safe_load(CONFIG)["nav"]))
    assert len(named) == len(set(named))
    assert {*named} == {*PAGES, "experiments/README.md", "experiments/ablations.md"}


def test_what_the_pages_include_is_in_the_readme():
    readme = (ROOT / "README.md").read_text()
    included = {region for text in PAGES.values() for region in re.findall(r'--8<-- "README\.md:(\w+)"', text)}
    assert (
        included == {*re.findall(r"--8<-- \[start:(\w+)\]", readme)} == {*re.findall(r"--8<-- \[end:(\w+)\]", readme)}
    )


def test_every_command_and_option_that_the_pages_name_exists(monkeypatch):
    commands = {module for text in PAGES.values() for module in re.findall(r"python -m ([\w.]+)", text)}
    assert len(commands) > 8
    assert not [module for module in commands if importlib.util.find_spec(module) is None]
    made = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {target for text in PAGES.values() for target in re.findall(r"`make ([\w-]+)`", text)} <= made

    named = {option for text in PAGES.values() for option in re.findall(r"(?<![\w-])--[a-z][\w.]*", text)}
    known = io.StringIO()
    for module in ("classification.fit", "classification.export"):
        monkeypatch.setattr(sys, "argv", [module, "--help"])
        with contextlib.redirect_stdout(known), pytest.raises(SystemExit):
            runpy.run_module(module, run_name="__main__", alter_sys=False)
    assert len(named) > 10
    assert not [option for option in named if not re.search(rf"{re.escape(option)}\b", known.getvalue())]


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """The folder of somebody who has trained what the pages go on with."""
    folder = tmp_path_factory.mktemp("reader")
    images = write_image_folder(folder / "path/to/images", ("blue", "green", "red"), train=1, val=1)
    save_checkpoint(folder / "runs/classification/mobile_former_26m-images/checkpoints/best.ckpt", images)
    coco = folder / "path" / "to" / "coco"
    write_coco(coco, "val", 1)
    module = DetectionModule(["cat", "dog"], name="e2e_mf_26m")
    content = {
        "state_dict": module.state_dict(),
        "hyper_parameters": dict(module.hparams),
        "datamodule_hyper_parameters": dict(DetectionData("scenes").hparams),
    }
    path = folder / "runs/detection/e2e_mf_52m-coco/checkpoints/best.ckpt"
    path.parent.mkdir(parents=True)
    torch.save(content, path)
    (folder / "path/to/mobile-former").symlink_to(ROOT)
    return folder


@pytest.mark.parametrize("page", [page for page, text in PAGES.items() if "```python" in text])
def test_the_code_of_a_page_runs(page, reader, monkeypatch):
    monkeypatch.chdir(reader)
    for code in re.findall(r"```python\n(.*?)```", PAGES[page], re.DOTALL):
        if "import timm" in code and importlib.util.find_spec("timm") is None:
            continue  # test_timm_models.py has a stand-in
        exec(compile(code, page, "exec"), {})


def test_the_figure_s_multiply_adds_are_all_of_a_model_s():
    madds = madds_by_part("mobile_former_26m")
    assert sum(madds.values()) == mobile_former.cost(mobile_former.mobile_former_26m()).madds
    assert min(madds.values()) > 0


@pytest.mark.slow
def test_the_figures_are_those_that_the_model_gives_today(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "experiments.figures", "--output", str(tmp_path)]
    subprocess.run(command, check=True, cwd=tmp_path, env=environment)
    drawn = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(drawn) == 8
    assert not [name for name, content in drawn.items() if (DOCS / "pictures" / name).read_bytes() != content]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout + result.stderr == ""
    return folder


@pytest.mark.slow
def test_the_api_has_every_public_name_and_module(site):
    api = "".join(path.read_text() for path in (site / "api").rglob("index.html"))
    headings = set(re.findall(r'<h\d id="([\w.]+)"', api))
    for package in (mobile_former, detection):
        for name in package.__all__:
            defined = getattr(package, name)
            assert {f"{package.__name__}.{name}", f"{defined.__module__}.{name}"} & headings, name
    for package in ("mobile_former", "mobile_former/training", "classification", "detection"):
        for path in (ROOT / package).glob("[!_]*.py"):
            assert f"{package.replace('/', '.')}.{path.stem}" in headings, path
    assert not re.findall(r":(?:func|class|meth|attr):", api)  # Sphinx's roles are links here


@pytest.mark.slow
def test_the_site_asks_nobody_for_anything(site):
    """What a browser loads with a page is in the site."""
    for path in site.rglob("*.html"):
        text = path.read_text()
        loaded = re.findall(r'<(?:script|img|iframe|source)[^>]*\ssrc="?([^"\s>]+)', text)
        loaded += re.findall(r'<link[^>]*rel="?(?:stylesheet|preconnect|preload|icon)"?[^>]*href="?([^"\s>]+)', text)
        loaded += re.findall(r'<link[^>]*href="?([^"\s>]+)"?[^>]*rel="?(?:stylesheet|preconnect|preload|icon)', text)
        assert loaded
        assert not [target for target in loaded if "//" in target], path
    for path in site.rglob("*.css"):
        assert not re.findall(r"url\(\"?(https?:)?//|@import", path.read_text()), path
