"""Fuzzing of the commands: damaged and hostile files are fed to every function that reads files."""
