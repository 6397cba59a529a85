"""The inference form of a model, which computes the same outputs with fewer operations."""
