"""Layers of the Mobile-Former block."""
