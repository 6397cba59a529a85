"""Command-line code that classification and detection share."""
