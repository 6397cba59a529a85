import re

import pytest

from mobile_former import InputError, Usage


def test_lists_become_tuples_and_the_default_is_imagenet_s():
    usage = Usage(class_names=["a", "b"], mean=[0.5], std=[0.25])
    assert usage == Usage(class_names=("a", "b"), mean=(0.5,), std=(0.25,))
    assert Usage() == Usage(None, 224, 0.875, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_names": "abc"}, "class_names is 'abc': give a tuple"),
        ({"class_names": (1, 2, 3)}, "class_names is (1, 2, 3): give strings"),
        ({"image_size": "96"}, "image_size is '96': give a number of pixels"),
        ({"image_size": 0}, "image_size is 0: give a number of pixels"),
        ({"crop_fraction": 0}, "crop_fraction is 0: give a number above 0 and up to 1"),
        ({"mean": None}, "mean is None: give a tuple"),
        ({"std": ("a", "b", "c")}, "std ('a', 'b', 'c'): give numbers"),
        ({"std": (0.5, 0.5, 0)}, "give one number per channel, with std above 0"),
        ({"mean": (0.5,)}, "give one number per channel, with std above 0"),
    ],
)
def test_bad_values_are_named(options, message):
    with pytest.raises(InputError, match=re.escape(message)):
        Usage(**options)
