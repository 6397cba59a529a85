"""Images and labels: image folders, tar shards, the embedded digits, transforms."""
