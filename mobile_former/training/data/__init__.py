"""Reading images, sampling and loading."""
