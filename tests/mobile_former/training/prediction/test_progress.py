"""Progress of a prediction."""

import signal

import pytest

from mobile_former.training.prediction.inputs import as_input
from mobile_former.training.prediction.progress import Pace, rows_shown


def count(pace, interrupted_at):
    """Follow a hundred predictions, and interrupt the process once. Return the number that came."""
    number = 0
    for number, _ in enumerate(pace.follow(range(100)), start=1):
        if number == interrupted_at:
            signal.raise_signal(signal.SIGINT)
    return number


def test_ctrl_c_ends_a_camera_after_the_frame_and_images_at_once(capsys):
    before = signal.getsignal(signal.SIGINT)
    pace = Pace([as_input("camera:0")], shown=True)
    assert count(pace, 5) == 5
    assert pace.count == 5
    pace.print_summary()
    assert capsys.readouterr().out.rstrip().endswith("frames a second; stopped")
    with pytest.raises(KeyboardInterrupt):
        count(Pace([as_input("a.jpg")] * 100, shown=True), 5)
    assert signal.getsignal(signal.SIGINT) is before


def test_the_summary_has_count_and_speed_unless_it_is_not_wanted(capsys):
    for shown in (True, False):
        pace = Pace([as_input("a.jpg")] * 100, shown=shown)
        assert count(pace, None) == 100
        pace.print_summary()
        output = capsys.readouterr().out
        assert output.startswith("100 images in ") == shown
    assert output == ""


@pytest.mark.parametrize(
    ("count", "options", "expected"),
    [(20, {}, True), (21, {}, False), (21, {"verbose": True}, True), (1, {"quiet": True}, None)],
)
def test_rows_are_printed_of_few_images_or_if_they_are_wanted(count, options, expected):
    assert rows_shown(count, **{"quiet": False, "verbose": False} | options) is expected
