"""The notebooks run from top to bottom, and the committed files are complete."""

import ast
import json
import os
import re
import subprocess
import sys

import nbformat
import pytest

from experiments.notebooks.__main__ import execute, list_notebooks, main
from mobile_former.errors import InputError
from tests.conftest import ROOT

# Parameters for a few steps instead of hundreds; the rest runs as committed.
SHORTER = {
    "detect_and_look_inside": {"TRAINING_SCENES": 32, "EPOCHS": 1},
    "fine_tune_on_your_own_folder": {"EPOCHS": 1, "PRETRAINING_EPOCHS": 1},
    "tour_of_the_backbone": {"STEPS": 5},
}
# A cell that calls one of these shows a picture.
DRAWING = {"subplots", "Image", "draw_bridge", "draw_boxes"}
PICTURES = {"image/png", "image/jpeg"}

each = pytest.mark.parametrize("path", list_notebooks(), ids=lambda path: path.stem)


def read(path):
    return nbformat.read(path, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(cell):
    """Return the kinds of a cell's outputs: names of streams, and MIME types."""
    return {kind for output in cell.outputs for kind in ([output.name] if "name" in output else output.get("data", {}))}


def called(source):
    """Return the names of the functions that a cell calls, except inside its own function definitions."""
    tree = ast.parse(re.sub(r"^%.*$", "", source, flags=re.MULTILINE))
    tree.body = [node for node in tree.body if not isinstance(node, ast.FunctionDef)]
    functions = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
    return {getattr(function, "id", getattr(function, "attr", "")) for function in functions}


def test_every_notebook_has_short_parameters_here():
    assert {path.stem for path in list_notebooks()} == set(SHORTER)


@each
def test_the_committed_file_is_valid_executed_in_order_and_small(path):
    notebook = read(path)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert path.stat().st_size < 600_000
    assert notebook.metadata.language_info == {"name": "python"}  # no version, which differs between machines
    assert not any("execution" in cell.metadata for cell in cells)  # and no times


@each
def test_the_committed_file_has_its_outputs_and_pictures_but_no_errors(path):
    notebook = read(path)
    for cell in code_cells(notebook):
        assert not {output.output_type for output in cell.outputs} & {"error"}, cell.source
        assert "stderr" not in kinds(cell), cell.source
        if "print" in called(cell.source):
            assert "stdout" in kinds(cell), cell.source
        if DRAWING & called(cell.source):
            assert PICTURES & kinds(cell), cell.source
    assert sum(bool(PICTURES & kinds(cell)) for cell in code_cells(notebook)) >= 4


@each
def test_the_committed_file_has_no_paths_times_or_warnings_of_a_machine(path):
    notebook = read(path)
    for cell in code_cells(notebook):
        for output in cell.outputs:
            for kind in PICTURES:  # base64 text can match by chance
                output.get("data", {}).pop(kind, None)
    content = nbformat.writes(notebook)
    assert not re.search(r"/(work|tmp|home|root|Users|opt|var)/|\b[A-Z]:\\\\", content)
    assert not re.search(r"Warning|\d\d:\d\d:\d\d|it/s", content)


@each
def test_every_code_cell_has_prose_before_it(path):
    notebook = read(path)
    assert notebook.cells[0].cell_type == "markdown"
    for before, cell in zip(notebook.cells, notebook.cells[1:], strict=False):
        if cell.cell_type == "code" and before.cell_type == "code":
            assert len(cell.source.splitlines()) <= 20, cell.source  # it continues the cell before


@each
def test_links_to_other_notebooks_work(path):
    for cell in read(path).cells:
        for target in re.findall(r"\]\((?!http)([^)]+)\)", cell.source):
            assert (path.parent / target).is_file(), target


@pytest.mark.slow
@pytest.mark.timeout(900)
@each
def test_it_runs_in_another_folder_and_shows_the_same_kinds_of_outputs(path, tmp_path):
    before = path.read_bytes()
    committed = read(path)
    ran = execute(committed, tmp_path, SHORTER[path.stem])
    assert [cell.source for cell in ran.cells] == [cell.source for cell in committed.cells]
    for cell, shown in zip(code_cells(ran), code_cells(committed), strict=True):
        assert kinds(cell) == kinds(shown), cell.source
    assert path.read_bytes() == before


def test_the_kernel_is_this_python_with_this_repository_and_takes_parameters(tmp_path, monkeypatch):
    decoy = tmp_path / "jupyter" / "kernels" / "python3"  # another kernel of the same name, as many users have
    decoy.mkdir(parents=True)
    (decoy / "kernel.json").write_text(json.dumps({"argv": ["false"], "display_name": "x", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    cells = [
        nbformat.v4.new_code_cell("EPOCHS = 30", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(
            "import os, sys, experiments\n[sys.executable, experiments.__path__[0], os.getcwd(), EPOCHS, os.getpid()]"
        ),
    ]
    notebook = nbformat.v4.new_notebook(cells=cells)
    ran = execute(notebook, tmp_path, {"EPOCHS": 1})
    *shown, process = ast.literal_eval(ran.cells[-1].outputs[0].data["text/plain"])
    with pytest.raises(ProcessLookupError):  # the kernel has ended
        os.kill(process, 0)
    assert shown == [sys.executable, str(ROOT / "experiments"), str(tmp_path.resolve()), 1]
    assert [cell.source for cell in ran.cells] == [cell.source for cell in cells]
    assert not cells[-1].outputs  # the given notebook is unchanged
    with pytest.raises(InputError, match="no parameter STEPS"):
        execute(notebook, tmp_path, {"STEPS": 1})
    failing = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")])
    with pytest.raises(InputError, match="ZeroDivisionError: division by zero"):
        execute(failing, tmp_path)


def test_experiments_is_found_from_any_folder(tmp_path):
    """The notebooks' ``sys.path`` line finds it when only the package is installed."""
    lines = {
        line for path in list_notebooks() for line in read(path).cells[1].source.splitlines() if "sys.path" in line
    }
    (line,) = lines
    code = f"import sys\nfrom pathlib import Path\nimport mobile_former\n{line}\nimport experiments"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)


def test_an_unknown_name_is_an_error_that_suggests_the_nearest(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["experiments.notebooks", "tour_of_the_backbones"])
    with pytest.raises(InputError, match="tour_of_the_backbone"):
        main()
