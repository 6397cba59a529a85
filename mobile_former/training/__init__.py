"""What both tasks share: command line, run folders, optimisation, callbacks, images, figures."""

import os

# albumentations asks a server for its newest version at every import unless told not to.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
