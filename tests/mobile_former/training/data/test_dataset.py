import pytest

from mobile_former.training.data.dataset import ListedImages, indices_to_look_at


class Leading(ListedImages):
    """A source of which only the first images are fast to read."""

    def leading(self, most):
        return 2 * most


@pytest.mark.parametrize(
    ("count", "most", "expected"),
    [(0, 3, []), (1, 3, [0]), (3, 3, [0, 1, 2]), (9, 1, [0]), (9, 3, [0, 4, 8]), (100, 4, [0, 33, 66, 99])],
)
def test_indices_are_evenly_spaced_from_the_first_to_the_last(count, most, expected):
    assert indices_to_look_at(ListedImages(range(count)), most) == expected


def test_indices_of_a_source_with_slow_scattered_reads_are_at_its_start():
    assert indices_to_look_at(Leading(range(100)), 4) == [0, 2, 5, 7]
