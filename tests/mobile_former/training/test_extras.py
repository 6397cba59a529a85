"""Libraries of extras are imported, or told how to get."""

import math
import sys

import pytest

from mobile_former import InputError
from mobile_former.training.extras import import_extra


def test_a_library_that_is_there_is_imported():
    assert import_extra("math", "sweep", "a sweep needs math") is math


@pytest.mark.parametrize("extra", ["sweep", "app", "hub", "notebooks", "export", "baselines"])
def test_one_that_is_missing_is_told_with_its_reason_and_its_extra(monkeypatch, extra):
    monkeypatch.setitem(sys.modules, "library", None)
    with pytest.raises(InputError) as told:
        import_extra("library.part", extra, "this needs library")
    text = str(told.value)
    assert text.startswith("this needs library, which cannot be imported (")
    assert text.endswith(f"): pip install -c constraints.txt -e '.[{extra}]'")
