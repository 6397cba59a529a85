"""Training code for classification and detection: command lines, data, optimisation, run folders and export."""

import importlib.util
import os
import sys

# Modules of the extra "train" in setup.cfg.
REQUIRED = (
    "pytorch_lightning", "torchmetrics", "jsonargparse", "yaml", "albumentations", "cv2", "PIL", "simplejpeg",
    "sklearn", "scipy", "pycocotools", "matplotlib", "rich", "tensorboard", "webdataset",
)  # fmt: skip

if _missing := [name for name in REQUIRED if importlib.util.find_spec(name) is None]:
    _message = (
        f"training needs packages that are not installed ({', '.join(_missing)}): pip install 'mobile-former[train]', "
        "or pip install -c constraints.txt -e '.[train]' in a clone"
    )
    if sys.argv[:1] == ["-m"]:  # `python -m classification.fit` imports the package first, with this as argv[0]
        sys.exit(f"error: {_message}")
    raise ImportError(_message)

# albumentations asks a server for its newest version at every import, unless this is set.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
