"""Something is done once another module is imported, and the module is none the worse for it."""

import importlib
import importlib.util
import sys

import pytest

from mobile_former.after_import import after_import


@pytest.fixture
def peer(tmp_path, monkeypatch):
    """The name of a package that nobody has imported; and what leaves no trace of it behind."""
    (tmp_path / "peer").mkdir()
    (tmp_path / "peer" / "__init__.py").write_text("from peer.part import VALUE\n")
    (tmp_path / "peer" / "part.py").write_text("VALUE = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    yield "peer"
    for name in [name for name in sys.modules if name.partition(".")[0] == "peer"]:
        del sys.modules[name]


def test_it_is_done_at_once_where_the_module_is_there_already(peer):
    importlib.import_module(peer)
    done = []
    after_import(peer, lambda: done.append("now"))
    assert done == ["now"]


def test_it_is_done_once_and_when_the_module_is_whole(peer):
    done, before = [], list(sys.meta_path)
    after_import(peer, lambda: done.append(sys.modules[peer].VALUE))
    assert peer not in sys.modules
    assert importlib.util.find_spec(peer).has_location  # to look whether it is there does nothing
    assert done == []
    module = importlib.import_module(peer)
    importlib.reload(module)
    assert done == [1]
    assert sys.meta_path == before


def test_two_who_wait_for_the_same_module_do_not_wait_for_each_other(peer):
    """As where a notebook's reload runs this package's own registration once more."""
    done, before = [], list(sys.meta_path)
    after_import(peer, lambda: done.append(1))
    after_import(peer, lambda: done.append(2))
    module = importlib.import_module(peer)
    assert type(module.__spec__.loader) is importlib.machinery.SourceFileLoader
    assert sorted(done) == [1, 2]
    assert sys.meta_path == before


def test_the_module_keeps_its_own_loader(peer):
    after_import(peer, lambda: None)
    module = importlib.import_module(peer)
    loader = importlib.machinery.SourceFileLoader
    assert type(module.__loader__) is type(module.__spec__.loader) is loader
    assert importlib.import_module("peer.part").VALUE == 1


def test_a_module_that_fails_fails_as_before_and_may_be_imported_once_more(peer, tmp_path):
    path = tmp_path / "peer" / "part.py"
    path.write_text("raise RuntimeError('torchvision is of another torch')\n")
    done = []
    after_import(peer, lambda: done.append("now"))
    for _ in range(2):
        with pytest.raises(RuntimeError, match="torchvision is of another torch"):
            importlib.import_module(peer)
    assert done == []
    path.write_text("VALUE = 'mended, and longer than before'\n")
    importlib.invalidate_caches()
    assert importlib.import_module(peer).VALUE.startswith("mended")
    assert done == ["now"]


def test_a_module_that_is_not_there_is_still_not_there(peer):
    after_import("no_such_module", lambda: None)
    assert importlib.util.find_spec("no_such_module") is None
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        importlib.import_module("no_such_module")
