"""What both tasks share: command line, run folders, optimisation, callbacks, images, figures."""

import os

# albumentations asks a server for its newest version at every import unless told not to.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

# Before scikit-learn: of Optional[Union[float, int]] typing keeps the order that it saw first, and with scikit-learn's,
# Lightning's command line would read `--trainer.limit_train_batches 1` as 1.0, which is all batches.
import pytorch_lightning  # noqa: F401
