"""MkDocs hooks, which add pages from outside ``docs/`` and list the modules of a package on its API page."""

import pkgutil
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add files from outside ``docs/`` to the site, with the same paths as in the repository.

    The added files are the licence file, and the pages, pictures and notebooks in ``experiments/``.
    """
    patterns = ("LICENSE", "experiments/*.md", "experiments/pictures/*", "experiments/notebooks/*.ipynb")
    for path in (path for pattern in patterns for path in ROOT.glob(pattern)):
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Adapt the Markdown of a page for the site.

    - A line ``::: package.*`` becomes one line for each public module of the package. Subpackages are left out.
    - One ``../`` is removed from links to ``experiments/``. In the repository, this folder is beside ``docs/``. On the
      site, it is in the root folder.
    """

    def list_modules(line: re.Match) -> str:
        modules = pkgutil.iter_modules([str(ROOT / line[1].replace(".", "/"))])
        names = [module.name for module in modules if not module.ispkg and not module.name.startswith("_")]
        return "\n\n".join(f"::: {line[1]}.{name}" for name in names)

    markdown = re.sub(r"\]\(\.\./((?:\.\./)*experiments/)", r"](\1", markdown)
    return re.sub(r"^::: ([\w.]+)\.\*$", list_modules, markdown, flags=re.MULTILINE)
