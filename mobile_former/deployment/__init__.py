"""The inference form of a model: same outputs, fewer operations."""
