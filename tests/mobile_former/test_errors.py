import pytest

from mobile_former.errors import InputError, first_line, nearest

NAMES = ["mobile_former_26m", "mobile_former_294m", "resnet50"]


@pytest.mark.parametrize(
    ("given", "phrase"),
    [
        ("resnet", "did you mean 'resnet50'?"),
        ("mobile_former_2", "did you mean 'mobile_former_26m' or 'mobile_former_294m'?"),
        ("resent50", "did you mean 'resnet50'?"),
        ("mobile_former_27m", "did you mean 'mobile_former_26m' or 'mobile_former_294m'?"),
        ("", "choose from 'mobile_former_26m', 'mobile_former_294m', 'resnet50'"),
        ("vit", "choose from 'mobile_former_26m', 'mobile_former_294m', 'resnet50'"),
    ],
)
def test_an_unknown_name_is_answered_with_similar_ones_or_all(given, phrase):
    assert nearest(given, iter(NAMES)) == phrase


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("\n  first  \nsecond"), "first"),
        (KeyError("name"), "'name'"),
        (OSError(), "OSError"),
        (InputError("x" * 300), "x" * 200),
    ],
)
def test_the_first_line_of_an_error_is_short_and_never_empty(error, line):
    assert first_line(error) == line
