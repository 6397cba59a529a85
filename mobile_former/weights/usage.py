"""What it takes to use a trained classifier, beside its weights."""

from dataclasses import dataclass

from mobile_former.errors import InputError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Usage:
    """How a classifier's images are prepared, and what its logits stand for.

    Attributes:
        class_names: the classes in the order of the logits; None where nobody knows.
        image_size: side in pixels of the square that it sees.
        crop_fraction: share of the shorter side that this square is, in ``(0, 1]``.
        mean: of each channel, in 0..1, taken off.
        std: of each channel, in 0..1, by which the rest is divided.

    Raises:
        InputError: a value out of range, or of another type.
    """

    class_names: tuple[str, ...] | None = None
    image_size: int = 224
    crop_fraction: float = 0.875
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self):
        # Lists as JSON has them, and tuples, are the same.
        for name in ("class_names", "mean", "std"):
            value = getattr(self, name)
            if not isinstance(value, (list, tuple)) and (value is not None or name != "class_names"):
                raise InputError(f"{name} is {value!r}: give a tuple")
            object.__setattr__(self, name, value and tuple(value))
        if not all(isinstance(name, str) for name in self.class_names or ()):
            raise InputError(f"class_names is {self.class_names!r}: give texts")
        if type(self.image_size) is not int or self.image_size < 1:
            raise InputError(f"image_size is {self.image_size!r}: give a number of pixels")
        numbers = (self.crop_fraction, *self.mean, *self.std)
        if not all(isinstance(number, (int, float)) for number in numbers) or not 0 < self.crop_fraction <= 1:
            raise InputError(f"crop_fraction is {self.crop_fraction!r}: give a share above 0, at most 1")
        if len(self.mean) != len(self.std) or not min(self.std, default=0) > 0:
            raise InputError(f"mean is {self.mean}, std {self.std}: give one number a channel, those of std above 0")
