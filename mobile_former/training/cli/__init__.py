"""Command lines of both tasks."""
