"""Image classification with Mobile-Former: training, evaluation and prediction."""

import mobile_former.training  # noqa: F401  # names the missing extra before a command fails on it
