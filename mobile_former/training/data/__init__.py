"""Training and evaluation data: image reading, data sets, samplers and data modules."""
