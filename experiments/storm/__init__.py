"""Storm: a test that disturbs training runs at random moments, for example kills them, and checks for lost work."""
