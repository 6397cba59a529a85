"""Execute notebooks from top to bottom in place, so that the committed outputs match the code.

    python -m experiments.notebooks                       # all notebooks
    python -m experiments.notebooks tour_of_the_backbone  # one notebook

All notebooks take seven minutes on one core.
"""

import argparse
import copy
import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from mobile_former.errors import InputError, nearest
from mobile_former.training.cli.command import run_command
from mobile_former.training.extras import import_extra

FOLDER = Path(__file__).parent
PARAMETERS = "parameters"  # tag of the cell that sets a notebook's variables


def main() -> None:
    """Execute the notebooks named on the command line, or all notebooks, and save them with their outputs."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.notebooks", description="Execute notebooks from top to bottom, in place."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="notebooks without .ipynb; default: all")
    known = [path.stem for path in list_notebooks()]
    for name in (names := parser.parse_args().names or known):
        if name not in known:
            raise InputError(f"no notebook is named {name!r}: {nearest(name, known)}")
    nbformat = _import("nbformat")
    for name in names:
        path = FOLDER / f"{name}.ipynb"
        notebook = execute(nbformat.read(path, as_version=4), FOLDER)
        nbformat.write(notebook, path)
        print(f"executed: {path.name}, {path.stat().st_size / 1000:.0f} kB", flush=True)


def list_notebooks() -> list[Path]:
    """Return the paths of the notebooks, sorted by name."""
    return sorted(FOLDER.glob("*.ipynb"))


def execute(notebook, folder: Path, parameters: Mapping[str, object] | None = None):
    """Execute a copy of a notebook from top to bottom in a fresh kernel, and return the copy with its outputs.

    The kernel runs the current Python interpreter with one thread, and can import this repository.

    Variables that the notebook assigns in its cell tagged "parameters" can get other values for the execution. A
    temporary cell after the tagged cell assigns these values. It is removed from the returned copy.

    Args:
        notebook: nbformat notebook. It is not changed.
        folder: working directory of the kernel.
        parameters: dictionary from the name of a variable to its new value. None: all variables keep their values.

    Raises:
        InputError: a package of the pip extra "notebooks" is missing, a cell raises an error, or the tagged cell lacks
            an assignment to one of the variables in ``parameters``.
    """
    nbclient, jupyter_client = _import("nbclient"), _import("jupyter_client")
    notebook = copy.deepcopy(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
            cell.metadata.pop("execution", None)
    set_cell = _set_parameters(notebook, parameters) if parameters else None
    # No registered kernels: one named python3 may belong to another Python.
    kernels = jupyter_client.kernelspec.KernelSpecManager(kernel_dirs=[])
    manager = jupyter_client.AsyncKernelManager(kernel_name="python3", kernel_spec_manager=kernels)
    client = nbclient.NotebookClient(
        notebook,
        km=manager,
        timeout=None,
        startup_timeout=300,  # seconds; enough on a busy machine
        extra_arguments=["--log-level=ERROR"],
        record_timing=False,
        resources={"metadata": {"path": str(folder)}},
    )
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",  # the number of threads changes the rounding of sums
        "PYTHONPATH": os.pathsep.join(filter(None, (str(FOLDER.parents[1]), os.environ.get("PYTHONPATH")))),
        "PYTHONWARNINGS": "ignore:IProgress not found",  # from tqdm, about a library that no notebook uses
    }
    try:
        client.execute(env=environment, cleanup_kc=True)  # stops the kernel, since the manager is ours
    except nbclient.exceptions.CellExecutionError as error:
        raise InputError(re.sub(r"\x1b\[[\d;]*m", "", str(error))) from error  # without the colours of the traceback
    if set_cell is not None:
        notebook.cells.remove(set_cell)
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},  # without the version, which differs between machines
    }
    return notebook


def _set_parameters(notebook, parameters: Mapping[str, object]):
    """Insert a cell that assigns new values to variables of a notebook, and return this cell.

    The new cell is inserted, in place, after the cell tagged "parameters".

    Args:
        notebook: nbformat notebook.
        parameters: dictionary from the name of a variable to its new value.

    Raises:
        InputError: the tagged cell lacks an assignment to one of the variables.
    """
    (number,) = (i for i, cell in enumerate(notebook.cells) if PARAMETERS in cell.metadata.get("tags", ()))
    source = notebook.cells[number].source
    for name in parameters:
        if f"{name} = " not in source:
            raise InputError(f"the notebook has no parameter {name}")
    cell = _import("nbformat").v4.new_code_cell("\n".join(f"{name} = {value!r}" for name, value in parameters.items()))
    notebook.cells.insert(number + 1, cell)
    return cell


def _import(name: str) -> ModuleType:
    return import_extra(name, "notebooks", f"the notebooks need {name}")


if __name__ == "__main__":
    run_command(main)
