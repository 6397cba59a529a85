"""Convert trained models to an inference form, which computes the same outputs with fewer operations."""
