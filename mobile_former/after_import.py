"""Do something as soon as another library is imported, without importing it."""

import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


def after_import(name: str, action: Callable[[], None]) -> None:
    """Call a function once a module has been imported: now where it has been, else when it is.

    Where the module is never imported, or fails to be, nothing happens.

    Args:
        name: of a top-level module.
        action: what to call, once.
    """
    if sys.modules.get(name) is not None:
        action()
    else:
        sys.meta_path.insert(0, _Finder(name, action))


class _Finder(MetaPathFinder):
    """Finds one module as the other finders do, with a loader that calls the action after it."""

    def __init__(self, name: str, action: Callable[[], None]):
        self.name = name
        self.action = action
        self.asks = False  # others of its kind, which would ask it in turn

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != self.name or self.asks:
            return None
        self.asks = True
        try:
            specs = (finder.find_spec(name, path, target) for finder in sys.meta_path if hasattr(finder, "find_spec"))
            spec = next(filter(None, specs), None)
        finally:
            self.asks = False
        if spec is not None and spec.loader is not None:  # None of a folder that is no package
            spec.loader = _Loader(spec.loader, self)
        return spec


class _Loader(Loader):
    """Executes a module by its own loader, which it leaves in the module, and calls the action."""

    def __init__(self, loader: Loader, finder: _Finder):
        self.loader = loader
        self.finder = finder

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)
        # Only now, as what fails is often imported once more.
        if self.finder in sys.meta_path:
            sys.meta_path.remove(self.finder)
            self.finder.action()

    def __getattr__(self, name: str) -> object:
        return getattr(self.loader, name)  # a loader's optional methods, for whom asks for the spec alone
