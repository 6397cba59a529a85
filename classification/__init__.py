"""Image classification with Mobile-Former: train, validate, test, predict."""

import mobile_former.training  # noqa: F401  # names the missing extra before a command fails on it
