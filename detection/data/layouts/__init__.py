"""Layouts of annotated images: recognising them, and reading them as dictionaries in COCO format."""
