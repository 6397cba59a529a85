"""Code of the ``predict`` commands: image files, URLs, videos and cameras, read in the background."""
