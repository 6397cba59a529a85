"""To and from the Hugging Face Hub: a folder of ``config.json``, ``model.safetensors`` and a model card.

Only what fetches from the Hub and pushes to it needs ``huggingface_hub``; a folder needs nothing.
"""

import importlib
import json
import re
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any, Self

from mobile_former.cost import cost
from mobile_former.errors import InputError, first_line
from mobile_former.weights.loading import load_weights, save_weights
from mobile_former.weights.usage import Usage
from mobile_former.whole_file import write_whole

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_USAGE = ("class_names", "image_size", "crop_fraction", "mean", "std")


class HubModel:
    """What :class:`mobile_former.MobileFormer` can do with the Hugging Face Hub, and with folders laid out as there.

    Attributes:
        usage: its classes, and how its images are prepared; None where nobody has told.
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
        """Build a published model, with its weights.

        Args:
            source: a folder, or the Hub's ``"owner/name"``.
            revision: of the Hub's repository: a branch, tag or commit.
            num_classes: another number of logits than the file's; the last linear then starts afresh.
            token: for private repositories, where ``hf auth login`` has left none.
            cache_dir: where what comes from the Hub is kept; default: huggingface_hub's.
            options: of :class:`mobile_former.MobileFormer`, for training: ``dropout``, ``drop_path``.

        Returns:
            The model in evaluation mode, with its :attr:`usage`.

        Raises:
            InputError: no such folder or repository, one without a Mobile-Former, or damaged files.
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
            raise InputError(f"{folder} has {CONFIG} and no {WEIGHTS}: fetch or save it again") from error
        return model.eval()

    def save_pretrained(
        self, folder: str | Path, usage: Usage | None = None, *, license: str = "apache-2.0", name: str | None = None
    ) -> None:
        """Write the model as a folder that :meth:`from_pretrained` reads.

        A model card that lies there already is left as it is.

        Args:
            folder: made where missing.
            usage: the classes, and how images are prepared; default: :attr:`usage`.
            license: of the weights, by the name that the Hub has for it; it stands in the card.
            name: under which the card's example loads the model; default: the folder's.

        Raises:
            InputError: another number of class names than of logits, or of means than of channels; a model with other
                parts than the published ones; or a folder that cannot be written.
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
        """Write the model into a repository of the Hugging Face Hub, which is made where missing.

        A model card that is there already is left as it is.

        Args:
            repository: ``"owner/name"``.
            usage: the classes, and how images are prepared; default: :attr:`usage`.
            license: of the weights, by the name that the Hub has for it.
            private: whether a new repository is seen by nobody else; default: the owner's setting.
            token: with which to write, where ``hf auth login`` has left none.

        Returns:
            The repository's address.

        Raises:
            InputError: huggingface_hub is missing, the Hub cannot be reached or refuses.
        """
        hub = _huggingface_hub(f"push to {repository}")
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, usage, license=license, name=repository)
            try:
                api = hub.HfApi(token=token)
                address = api.create_repo(repository, private=private, exist_ok=True)
                if api.file_exists(repository, CARD):
                    (Path(folder) / CARD).unlink()
                api.upload_folder(repo_id=repository, folder_path=folder, commit_message=f"Upload {self.variant}")
            except Exception as error:  # of many kinds, its client's among them
                raise InputError(
                    f"cannot push to {repository} ({_reason(error)}): log in by `hf auth login` with a token that may "
                    "write there, and look whether the Hub can be reached"
                ) from error
        return str(address)


def fetch(
    repository: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
) -> Path:
    """Fetch a published model's files from the Hugging Face Hub, those that are not in the cache.

    Args:
        repository: ``"owner/name"``.
        revision: a branch, tag or commit.
        token: for private repositories.
        cache_dir: where they are kept.

    Returns:
        Their folder.

    Raises:
        InputError: not a repository's name, none that can be had, or huggingface_hub is missing.
    """
    if not _REPOSITORY.fullmatch(repository):
        raise InputError(f"there is no folder {repository}, and the Hub's repositories have names like owner/name")
    hub = _huggingface_hub(f"fetch {repository} from the Hub (there is no such folder)")
    try:
        folder = hub.snapshot_download(
            repository, revision=revision, token=token, cache_dir=cache_dir, allow_patterns=[CONFIG, WEIGHTS]
        )
    except Exception as error:  # of many kinds, its client's among them
        raise InputError(
            f"there is no folder {repository}, and it cannot be fetched from the Hub ({_reason(error)}): look at the "
            "name, at the network, and where it is private, log in by `hf auth login`"
        ) from error
    return Path(folder)


def _huggingface_hub(purpose: str) -> ModuleType:
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise InputError(
            f"cannot {purpose}: huggingface_hub is missing ({error}): pip install -c constraints.txt -e '.[hub]' "
            "in this repository, pip install huggingface_hub elsewhere"
        ) from error


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"


def read_config(path: Path) -> dict[str, Any]:
    """What :meth:`HubModel.save_pretrained` wrote of a model beside its weights, by the names of its options.

    Raises:
        InputError: missing, or damaged.
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
            f"{path} is damaged, or not of a Mobile-Former of this project ({_reason(error)}): fetch or save it again"
        ) from error


def _check_usage(model: "HubModel", usage: Usage) -> None:
    if usage.class_names is not None and len(usage.class_names) != model.num_classes:
        raise InputError(f"{len(usage.class_names)} class names for {model.num_classes} logits: give one for each")
    if len(usage.mean) != model.in_chans:
        raise InputError(f"mean and std of {len(usage.mean)} channels, images of {model.in_chans}: give one for each")


def _require_published_parts(model: "HubModel") -> None:
    """Refuse a model that its config would not build again, such as one with an ablation."""
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
            f"this model is not {model.variant} as published ({name} differs; an ablation?), so that nobody could load "
            "it: keep its checkpoint"
        )


def _card(model: "HubModel", usage: Usage, license: str, name: str) -> str:
    """A model card in the Hub's form: metadata in YAML, then Markdown."""
    if not re.fullmatch(r"[\w.+-]+", license):
        raise InputError(f"license is {license!r}: give a name such as apache-2.0, or other")
    title = f"Mobile-Former-{model.variant.removeprefix('mobile_former_').upper()}"
    size = usage.image_size
    spent = cost(model, (size, size))
    names = usage.class_names or ()
    listed = ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")
    return _CARD.format(
        license=license,
        title=title,
        classes=f"{model.num_classes} classes{f': {listed}' if names else ''}",
        params=f"{spent.params:,}".replace(",", " "),
        madds=f"{spent.madds / 1e6:.2f}",
        size=size,
        name=name,
        mode="RGB" if model.in_chans == 3 else "L",
        mean=list(usage.mean),
        std=list(usage.std),
        border=round((1 - usage.crop_fraction) / 2, 6),
    )


_NAMED = 100  # classes that a card lists

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

A [Mobile-Former](https://arxiv.org/abs/2108.05895), a MobileNet and a transformer of a few tokens joined by a two-way
bridge, for {classes}.

| parameters | multiply-adds at {size} pixels | mean of the channels | their standard deviation |
|---|---|---|---|
| {params} | {madds} M | {mean} | {std} |

## Use

With the package `mobile_former`, which needs PyTorch and safetensors (and `huggingface_hub` to fetch from the Hub):

```python
import numpy as np
import torch
from PIL import Image, ImageOps

from mobile_former import MobileFormer

model = MobileFormer.from_pretrained("{name}")
photo = Image.open("photo.jpg").convert("{mode}")
photo = ImageOps.fit(photo, ({size}, {size}), Image.Resampling.BILINEAR, bleed={border})  # the middle of it
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
