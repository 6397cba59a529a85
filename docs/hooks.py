"""What MkDocs has to know of this repository beside the pages in docs/."""

import pkgutil
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The pages of experiments, and what they and the README show, lie in the site where they lie in the repository."""
    shown = [ROOT / "LICENSE", *(ROOT / "experiments").glob("*.md"), *(ROOT / "experiments/pictures").iterdir()]
    for path in shown:
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """A line ``::: package.*`` stands for all public modules of a package, those of its own packages left out."""

    def list_modules(line: re.Match) -> str:
        modules = pkgutil.iter_modules([str(ROOT / line[1].replace(".", "/"))])
        names = [module.name for module in modules if not module.ispkg and not module.name.startswith("_")]
        return "\n\n".join(f"::: {line[1]}.{name}" for name in names)

    return re.sub(r"^::: ([\w.]+)\.\*$", list_modules, markdown, flags=re.MULTILINE)
