"""Run exported classifiers in several runtimes, and compare outputs and times."""
