"""Print the commands of a task, for ``python -m classification`` and ``python -m detection``."""

import ast
import re
import sys
from pathlib import Path

from mobile_former.errors import InputError, nearest

_FIRST = ("fit", "validate", "test", "predict", "export")  # the order in which people need them; others follow


def list_commands(task: str, folder: Path) -> None:
    """Print one line for each command of a task.

    A command is a module or package whose docstring begins with the command line in double backticks, followed by a
    colon and a description. Nothing is imported, because some commands import PyTorch and Lightning.

    Args:
        task: name of the package of the task.
        folder: folder of the package.

    Raises:
        InputError: the command line has arguments. They are only valid after the name of a command.
    """
    found = {}
    for path in (*folder.glob("*.py"), *folder.glob("*/__init__.py")):
        first_line = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]
        if command := re.match(rf"``python -m {task}\.(\w+)``: (.*)", first_line):
            found[command[1]] = command[2].rstrip(".")
    names = [name for name in _FIRST if name in found] + sorted(found.keys() - {*_FIRST})
    given = [argument for argument in sys.argv[1:] if argument not in {"-h", "--help"}]
    if given:
        hint = nearest(given[0], names).replace("'", "")
        raise InputError(f"python -m {task} {given[0]}: write python -m {task}.COMMAND; {hint}")
    print(f"usage: python -m {task}.COMMAND [options]; --help explains the options of a command\n")
    width = max(map(len, names))
    for name in names:
        print(f"  {name:{width}}  {found[name]}")
