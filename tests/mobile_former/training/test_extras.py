import math
import sys

import pytest

from mobile_former import InputError
from mobile_former.training.extras import import_extra


def test_an_installed_library_is_imported():
    assert import_extra("math", "sweep", "a sweep needs math") is math


@pytest.mark.parametrize("extra", ["sweep", "app", "hub", "notebooks", "export", "baselines"])
def test_the_error_for_a_missing_library_names_reason_and_extra(monkeypatch, extra):
    monkeypatch.setitem(sys.modules, "library", None)
    with pytest.raises(InputError) as error:
        import_extra("library.part", extra, "this needs library")
    text = str(error.value)
    assert text.startswith("this needs library, which cannot be imported (")
    assert text.endswith(f"): pip install -c constraints.txt -e '.[{extra}]'")
