"""Fuzzing: damaged and hostile files for every reader of the commands."""
