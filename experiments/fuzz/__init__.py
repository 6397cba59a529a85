"""Fuzzing: feed damaged and hostile files to every function with which the commands read files."""
