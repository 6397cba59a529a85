"""The documentation names only what exists, and its site is built without warnings and loads nothing from elsewhere."""

import contextlib
import importlib.util
import io
import os
import re
import runpy
import subprocess
import sys

import pytest
import yaml

import detection
import mobile_former
from experiments.figures import madds_by_part
from tests.conftest import ROOT

DOCS = ROOT / "docs"
CONFIG = yaml.safe_load((ROOT / "mkdocs.yml").read_text())


def targets(entries):
    """Yield the pages of a navigation, in order."""
    for entry in entries:
        for target in entry.values():
            yield from targets(target) if isinstance(target, list) else (target,)


NAVIGATION = list(targets(CONFIG["nav"]))
PAGES = {page: (DOCS / page).read_text() for page in NAVIGATION if not page.startswith("experiments/")}


def test_the_navigation_leads_to_every_page_and_to_no_other():
    assert len(NAVIGATION) == len(set(NAVIGATION))
    pages = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    assert {*NAVIGATION} == {*pages, "experiments/README.md", "experiments/ablations.md"}


def test_every_page_has_the_title_of_its_entry_in_the_navigation():
    def entries(nav):
        for entry in nav:
            for title, target in entry.items():
                yield from entries(target) if isinstance(target, list) else [(target, title)]

    for page, title in entries(CONFIG["nav"]):
        if page != "index.md" and page in PAGES and not page.startswith("api/"):
            assert PAGES[page].startswith(f"# {title}\n"), page


def test_what_the_pages_include_is_in_the_readme():
    readme = (ROOT / "README.md").read_text()
    included = {region for text in PAGES.values() for region in re.findall(r'--8<-- "README\.md:(\w+)"', text)}
    assert (
        included == {*re.findall(r"--8<-- \[start:(\w+)\]", readme)} == {*re.findall(r"--8<-- \[end:(\w+)\]", readme)}
    )


def test_the_tables_of_the_pages_are_those_of_the_readme():
    def rows(text):
        return set(re.findall(r"^\| `(?:mobile_former|e2e_mf|retinanet_mf)_\w+` \|.*$", text, re.MULTILINE))

    readme, pages = rows((ROOT / "README.md").read_text()), {page: rows(text) for page, text in PAGES.items()}
    assert len(readme) == 7 + 12 + 7 + 3
    assert pages["models.md"] | pages["speed.md"] >= readme
    assert {row for row in readme if row.endswith("056 |") or row.endswith("280 |")} <= pages["detection/detectors.md"]


def test_links_between_files_lead_to_files_of_the_repository():
    for path in (ROOT / "README.md", *DOCS.rglob("*.md"), *(ROOT / "experiments").glob("*.md")):
        for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text()):
            if "://" not in link and not link.startswith("mailto:"):
                assert (path.parent / link).exists(), f"{path}: {link}"


def test_every_command_and_option_that_the_readme_and_the_pages_name_exists(monkeypatch):
    texts = [(ROOT / "README.md").read_text(), *PAGES.values()]
    commands = {module for text in texts for module in re.findall(r"python -m ([a-z_]+\.\w+)", text)}
    assert len(commands) > 15
    assert not [module for module in commands if importlib.util.find_spec(module) is None]
    made = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {target for text in texts for target in re.findall(r"`make ([\w-]+)`", text)} <= made

    # Of an option such as --data.images.train, the help lists --data.images.
    named = {option for text in texts for option in re.findall(r"(?<![\w-])--[a-z]\w*(?:\.\w+)?", text)}
    known = io.StringIO()
    for module in sorted(commands):
        monkeypatch.setattr(sys, "argv", [module, "--help"])
        helped = io.StringIO()
        with contextlib.redirect_stdout(helped), pytest.raises(SystemExit):
            runpy.run_module(module, run_name="__main__", alter_sys=False)
        known.write(helped.getvalue())
        if module.endswith(".fit"):  # its help begins with this project's options
            topics = re.findall(r": --help\.([\w.]+)$", helped.getvalue().split("options:")[0], re.MULTILINE)
            assert topics == ["trainer", "data.train_transforms"]
            for topic in topics:
                monkeypatch.setattr(sys, "argv", [module, f"--help.{topic}"])
                with contextlib.redirect_stdout(helped), pytest.raises(SystemExit):
                    runpy.run_module(module, run_name="__main__", alter_sys=False)
        known.write(helped.getvalue())
        if "--trainer" in helped.getvalue():
            assert not re.search(
                r"`|:\w+:`|known subclasses|albumentations\.aug$|Mobile-$", helped.getvalue(), re.MULTILINE
            )
            assert "albumentations.Affine" in helped.getvalue() or not module.endswith(".fit")
    assert len(named) > 60
    unknown = {option for option in named if not re.search(rf"{re.escape(option)}\b", known.getvalue())}
    assert unknown == {"--logdir"}  # TensorBoard's


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
    modules = [
        path for package in ("mobile_former", "classification", "detection") for path in (ROOT / package).rglob("*.py")
    ]
    assert len(modules) > 100
    for path in modules:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        assert path.name.startswith("_") or name in headings, path
    assert not re.findall(r":(?:func|class|meth|attr):", api)  # Sphinx roles are links here


@pytest.mark.slow
def test_the_site_loads_nothing_from_elsewhere(site):
    """Everything that a browser loads with a page is in the site."""
    for path in site.rglob("*.html"):
        text = path.read_text()
        loaded = re.findall(r'<(?:script|img|iframe|source)[^>]*\ssrc="?([^"\s>]+)', text)
        loaded += re.findall(r'<link[^>]*rel="?(?:stylesheet|preconnect|preload|icon)"?[^>]*href="?([^"\s>]+)', text)
        loaded += re.findall(r'<link[^>]*href="?([^"\s>]+)"?[^>]*rel="?(?:stylesheet|preconnect|preload|icon)', text)
        assert loaded
        assert not [target for target in loaded if "//" in target], path
    for path in site.rglob("*.css"):
        assert not re.findall(r"url\(\"?(https?:)?//|@import", path.read_text()), path
