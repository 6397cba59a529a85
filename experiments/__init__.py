"""What was tried, how to run it again, what came out."""
