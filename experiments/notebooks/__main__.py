"""Execute the notebooks from top to bottom, so that the outputs committed are those of the code beside them.

python -m experiments.notebooks                       # all of them, seven minutes of one core
python -m experiments.notebooks tour_of_the_backbone  # one
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
PARAMETERS = "parameters"  # tag of the cell that gives a notebook's variables their values


def main() -> None:
    """Execute the notebooks named, and write their outputs into them."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.notebooks", description="Execute notebooks from top to bottom, in place."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="which; default: all")
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
    """The notebooks, by name."""
    return sorted(FOLDER.glob("*.ipynb"))


def execute(notebook, folder: Path, parameters: Mapping[str, object] | None = None):
    """Execute a notebook from top to bottom in a fresh kernel: this Python's, on one thread, with this repository.

    Args:
        notebook: nbformat's; it stays as it is.
        folder: the kernel's working directory.
        parameters: other values for variables of the cell tagged "parameters"; they are set in a cell of their own,
            which follows it and is left out of the result.

    Returns:
        The notebook with its outputs.

    Raises:
        InputError: the optional extra is missing, a cell raises, or there is no such variable.
    """
    nbclient, jupyter_client = _import("nbclient"), _import("jupyter_client")
    notebook = copy.deepcopy(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
            cell.metadata.pop("execution", None)
    set_cell = _set_parameters(notebook, parameters) if parameters else None
    # None that is registered under the name, which may be another Python's.
    kernels = jupyter_client.kernelspec.KernelSpecManager(kernel_dirs=[])
    manager = jupyter_client.AsyncKernelManager(kernel_name="python3", kernel_spec_manager=kernels)
    client = nbclient.NotebookClient(
        notebook,
        km=manager,
        timeout=None,
        startup_timeout=300,  # seconds, of a machine that does other work as well
        extra_arguments=["--log-level=ERROR"],
        record_timing=False,
        resources={"metadata": {"path": str(folder)}},
    )
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",  # sums are rounded alike on machines of few and of many cores
        "PYTHONPATH": os.pathsep.join(filter(None, (str(FOLDER.parents[1]), os.environ.get("PYTHONPATH")))),
        "PYTHONWARNINGS": "ignore:IProgress not found",  # tqdm's, of a library that no notebook here makes use of
    }
    try:
        client.execute(env=environment, cleanup_kc=True)  # or the kernel, being given, would be left running
    except nbclient.exceptions.CellExecutionError as error:
        raise InputError(re.sub(r"\x1b\[[\d;]*m", "", str(error))) from error  # without the traceback's colours
    if set_cell is not None:
        notebook.cells.remove(set_cell)
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},  # without the version, which changes with the machine
    }
    return notebook


def _set_parameters(notebook, parameters: Mapping[str, object]):
    """Insert the cell that sets parameters, and return it."""
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
