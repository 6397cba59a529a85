"""Class names and image preprocessing of a trained classifier."""

from dataclasses import dataclass

from mobile_former.errors import InputError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Usage:
    """Class names and image preprocessing of a classifier.

    Attributes:
        class_names: names of the classes in the order of the logits; None if unknown.
        image_size: side of the square input image in pixels.
        crop_fraction: ratio of the side of the centre crop to the shorter side of the image, in ``(0, 1]``.
        mean: mean of each channel, which is subtracted from the pixel values in [0, 1].
        std: standard deviation of each channel, by which the difference is divided.

    Raises:
        InputError: a value is out of range or has the wrong type.
    """

    class_names: tuple[str, ...] | None = None
    image_size: int = 224
    crop_fraction: float = 0.875
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self):
        # JSON has lists instead of tuples.
        for name in ("class_names", "mean", "std"):
            value = getattr(self, name)
            if not isinstance(value, (list, tuple)) and (value is not None or name != "class_names"):
                raise InputError(f"{name} is {value!r}: give a tuple")
            object.__setattr__(self, name, value and tuple(value))
        if not all(isinstance(name, str) for name in self.class_names or ()):
            raise InputError(f"class_names is {self.class_names!r}: give strings")
        if type(self.image_size) is not int or self.image_size < 1:
            raise InputError(f"image_size is {self.image_size!r}: give a number of pixels")
        if not all(isinstance(number, (int, float)) for number in (self.crop_fraction, *self.mean, *self.std)):
            raise InputError(f"crop_fraction is {self.crop_fraction!r}, mean {self.mean}, std {self.std}: give numbers")
        if not 0 < self.crop_fraction <= 1:
            raise InputError(f"crop_fraction is {self.crop_fraction!r}: give a number above 0 and up to 1")
        if len(self.mean) != len(self.std) or not min(self.std, default=0) > 0:
            raise InputError(f"mean is {self.mean}, std {self.std}: give one number per channel, with std above 0")
