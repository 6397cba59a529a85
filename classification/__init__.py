"""Image classification with Mobile-Former: train, validate, test, predict."""
