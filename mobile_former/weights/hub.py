"""Load and save model folders, which contain ``config.json``, ``model.safetensors`` and a model card.

A model folder can be local or a repository on the Hugging Face Hub. Only downloads and uploads need
``huggingface_hub``.
"""

import json
import re
import tempfile
from pathlib import Path
from typing import Any, Self

from mobile_former.errors import InputError
from mobile_former.multiply_adds import cost
from mobile_former.weights.loading import load_weights, save_weights
from mobile_former.weights.sources import CONFIG, WEIGHTS, fetch, huggingface_hub, reason
from mobile_former.weights.usage import Usage
from mobile_former.whole_file import write_whole

CARD = "README.md"

_USAGE = ("class_names", "image_size", "crop_fraction", "mean", "std")


class HubModel:
    """Base class of :class:`mobile_former.MobileFormer` with methods that load and save models.

    The models can be in local folders or in repositories on the Hugging Face Hub.

    Attributes:
        usage: class names and preprocessing of the model; None if unknown.
    """

    usage: Usage | None = None

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        revision: str | None = None,
        num_classes: int | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        **options: Any,
    ) -> Self:
        """Build a model from the configuration and weights in a local folder or on the Hugging Face Hub.

        Args:
            source: path of a folder, or name of a repository, ``"owner/name"``.
            revision: branch, tag or commit of the repository; default: the main branch.
            num_classes: number of classes; default: the number in ``config.json``. With another number, the last linear
                layer is not loaded and the class names are unknown.
            token: access token for private repositories; default: the token of ``hf auth login``.
            cache_dir: folder in which downloads are cached; default: the cache folder of huggingface_hub.
            options: ``dropout`` and ``drop_path`` of :class:`mobile_former.MobileFormer`, for training.

        Returns:
            The model in evaluation mode. :attr:`usage` holds the class names and preprocessing in ``config.json``.

        Raises:
            InputError: the folder or repository does not exist or contains no Mobile-Former, a file is damaged, an
                option is invalid, or a download fails.
        """
        folder = Path(source)
        if not folder.is_dir():
            folder = fetch(str(source), revision=revision, token=token, cache_dir=cache_dir)
        config = read_config(folder / CONFIG)
        usage = {name: config.pop(name) for name in _USAGE if name in config}
        if num_classes not in (None, config["num_classes"]):
            config["num_classes"], usage["class_names"] = num_classes, None
        try:
            usage = Usage(**usage)
            model = cls(config.pop("architecture"), **config, **options)
        except InputError as error:
            raise InputError(f"{folder / CONFIG}: {error}") from error
        model.usage = usage
        _check_usage(model, usage)
        try:
            load_weights(model, folder / WEIGHTS)
        except FileNotFoundError as error:
            raise InputError(f"{folder} has {CONFIG}, but no {WEIGHTS}: fetch or save it again") from error
        return model.eval()

    def save_pretrained(
        self, folder: str | Path, usage: Usage | None = None, *, license: str = "apache-2.0", name: str | None = None
    ) -> None:
        """Save the model to a folder that :meth:`from_pretrained` can load.

        An existing model card is not overwritten.

        Args:
            folder: path of the folder, which is created if it is missing.
            usage: class names and preprocessing; default: the model's :attr:`usage`, or ``Usage()`` if that is None.
            license: licence of the weights, as an identifier of the Hub such as ``"mit"``. It is written to the model
                card.
            name: name of the model in the code example of the model card; default: name of the folder.

        Raises:
            InputError: the number of class names differs from the number of classes, the number of channel means
                differs from the number of image channels, the model is not a published one, the licence identifier is
                invalid, or the folder cannot be written.
        """
        folder, usage = Path(folder), usage or self.usage or Usage()
        _check_usage(self, usage)
        _require_published_parts(self)
        config = {"architecture": self.variant, "num_classes": self.num_classes, "in_chans": self.in_chans}
        config |= {"spatial_dynamic_relu": self.spatial_dynamic_relu} | {key: getattr(usage, key) for key in _USAGE}
        try:
            save_weights(self, folder / WEIGHTS)
            write_whole(folder / CONFIG, (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode())
            if not (folder / CARD).exists():
                write_whole(folder / CARD, _card(self, usage, license, name or folder.name).encode())
        except OSError as error:
            raise InputError(str(error)) from error

    def push_to_hub(
        self,
        repository: str,
        usage: Usage | None = None,
        *,
        license: str = "apache-2.0",
        private: bool | None = None,
        token: str | bool | None = None,
    ) -> str:
        """Upload the model to a repository of the Hugging Face Hub.

        A missing repository is created. An existing model card is not overwritten.

        Args:
            repository: name of the repository, ``"owner/name"``.
            usage: class names and preprocessing; default: the model's :attr:`usage`, or ``Usage()`` if that is None.
            license: licence of the weights, as an identifier of the Hub such as ``"mit"``. It is written to the model
                card.
            private: whether a new repository is private; default: the owner's setting on the Hub.
            token: access token with write permission; default: the token of ``hf auth login``.

        Returns:
            The URL of the repository.

        Raises:
            InputError: huggingface_hub is not installed, the Hub cannot be reached or refuses the upload, or
                :meth:`save_pretrained` refuses the model.
        """
        hub = huggingface_hub(f"push to {repository}")
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, usage, license=license, name=repository)
            try:
                api = hub.HfApi(token=token)
                address = api.create_repo(repository, private=private, exist_ok=True)
                if api.file_exists(repository, CARD):
                    (Path(folder) / CARD).unlink()
                api.upload_folder(repo_id=repository, folder_path=folder, commit_message=f"Upload {self.variant}")
            except Exception as error:  # huggingface_hub and its HTTP client raise exceptions of many types
                raise InputError(
                    f"cannot push to {repository} ({reason(error)}): log in by `hf auth login` with a token that has "
                    "write permission, and check that the Hub can be reached"
                ) from error
        return str(address)


def read_config(path: Path) -> dict[str, Any]:
    """Read the ``config.json`` that :meth:`HubModel.save_pretrained` wrote.

    Returns:
        Dictionary with the options of the model and the fields of :class:`Usage` (class names and preprocessing).

    Raises:
        InputError: the file is missing or damaged.
    """
    if not path.is_file():
        raise InputError(f"{path.parent} has no {path.name}: give a folder that save_pretrained wrote, or owner/name")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        known = {name: config[name] for name in ("architecture", "num_classes", "in_chans", "spatial_dynamic_relu")}
        if list(map(type, known.values())) != [str, int, int, bool]:
            raise ValueError(f"values of other types: {list(known.values())}")
        return known | {name: config[name] for name in _USAGE}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is damaged or belongs to another kind of model ({reason(error)}): fetch or save it again"
        ) from error


def _check_usage(model: HubModel, usage: Usage) -> None:
    if usage.class_names is not None and len(usage.class_names) != model.num_classes:
        raise InputError(f"{len(usage.class_names)} class names for {model.num_classes} logits: give one for each")
    if len(usage.mean) != model.in_chans:
        raise InputError(f"mean and std have {len(usage.mean)} channels, images {model.in_chans}: give one for each")


def _require_published_parts(model: HubModel) -> None:
    """Raise InputError if the model's tensors differ in name or shape from those of the published model.

    Ablations can cause such differences. A model that has them cannot be saved by :meth:`HubModel.save_pretrained`,
    because ``config.json`` can describe only published models.
    """
    published = model.published(
        model.variant,
        num_classes=model.num_classes,
        in_chans=model.in_chans,
        spatial_dynamic_relu=model.spatial_dynamic_relu,
    )
    shapes, expected = ({name: value.shape for name, value in m.state_dict().items()} for m in (model, published))
    if shapes != expected:
        name = min(name for name, _ in shapes.items() ^ expected.items())
        raise InputError(
            f"this model is not {model.variant} as published ({name} differs; an ablation?), so from_pretrained could "
            "not load it: keep its checkpoint"
        )


def _card(model: HubModel, usage: Usage, license: str, name: str) -> str:
    """Return the text of a model card in the Hub's format: metadata in YAML, then Markdown."""
    if not re.fullmatch(r"[\w.+-]+", license):
        raise InputError(f"license is {license!r}: give a name such as apache-2.0, or other")
    size = usage.image_size
    costs = cost(model, (size, size))
    names = usage.class_names or ()
    listed = ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")
    return _CARD.format(
        license=license,
        title=f"Mobile-Former-{model.variant.removeprefix('mobile_former_').upper()}",
        classes=f"{model.num_classes} classes{f': {listed}' if names else ''}",
        params=f"{costs.params:,}".replace(",", " "),
        madds=f"{costs.madds / 1e6:.2f}",
        size=size,
        name=name,
        mode="RGB" if model.in_chans == 3 else "L",
        mean=list(usage.mean),
        std=list(usage.std),
        border=round((1 - usage.crop_fraction) / 2, 6),
    )


_NAMED = 100  # maximum number of classes in the model card

_CARD = """\
---
license: {license}
library_name: mobile-former
pipeline_tag: image-classification
tags:
- image-classification
- mobile-former
- arxiv:2108.05895
---

# {title}

[Mobile-Former](https://arxiv.org/abs/2108.05895), a MobileNet and a transformer connected by a two-way bridge, for
{classes}.

| parameters | multiply-adds at {size} pixels | mean per channel | standard deviation per channel |
|---|---|---|---|
| {params} | {madds} M | {mean} | {std} |

## Use

With the package `mobile_former`, which needs PyTorch and safetensors, and `huggingface_hub` for downloads from the Hub:

```python
import numpy as np
import torch
from PIL import Image, ImageOps

from mobile_former import MobileFormer

model = MobileFormer.from_pretrained("{name}")
photo = Image.open("photo.jpg").convert("{mode}")
photo = ImageOps.fit(photo, ({size}, {size}), Image.Resampling.BILINEAR, bleed={border})  # centre crop
image = torch.from_numpy(np.atleast_3d(photo).copy()).permute(2, 0, 1) / 255
mean, std = (torch.tensor(values)[:, None, None] for values in (model.usage.mean, model.usage.std))
with torch.inference_mode():
    probabilities = model(((image - mean) / std)[None]).softmax(1)[0]
best = probabilities.argmax().item()
print(model.usage.class_names[best] if model.usage.class_names else best, probabilities[best].item())
```

## Cite

```bibtex
@inproceedings{{chen2022mobileformer,
  title     = {{Mobile-Former: Bridging MobileNet and Transformer}},
  author    = {{Chen, Yinpeng and Dai, Xiyang and Chen, Dongdong and Liu, Mengchen and Dong, Xiaoyi and
               Yuan, Lu and Liu, Zicheng}},
  booktitle = {{CVPR}},
  year      = {{2022}}
}}
```
"""
