"""Layers that the blocks are built from."""
