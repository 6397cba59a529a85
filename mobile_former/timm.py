"""Integration with timm: importing this module registers the published models with timm.

After ``import mobile_former.timm``, build a model with ``timm.create_model("mobile_former_294m", …)``. The options and
methods of these models follow timm's names and conventions.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mobile_former.errors import InputError, first_line
from mobile_former.layers.checkpointing import checkpoint_gradients
from mobile_former.model import Backbone, MobileFormer
from mobile_former.variants import VARIANTS
from mobile_former.weights.hub import read_config
from mobile_former.weights.loading import load_weights
from mobile_former.weights.sources import CONFIG, WEIGHTS, fetch
from mobile_former.weights.usage import IMAGENET_MEAN, IMAGENET_STD

try:
    from timm.models import FeatureInfo, generate_default_cfgs, register_model
except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision that was built for another torch
    raise ImportError(
        f"mobile_former.timm needs timm, which cannot be imported ({first_line(error)}): pip install timm"
    ) from error

# timm's pretrained_cfg of the models: preprocessing, and the names of the first and the last layer.
_CONFIG = {
    "input_size": (3, 224, 224),
    "interpolation": "bilinear",
    "crop_pct": 0.875,
    "mean": IMAGENET_MEAN,
    "std": IMAGENET_STD,
    "num_classes": 1000,
    "pool_size": (7, 7),
    "first_conv": "backbone.stem.conv",
    "classifier": "classifier.logits",
}

_OPTIONS = {"in_chans", "spatial_dynamic_relu"}  # of MobileFormer, under the same names in timm

# timm reads this name from the module of the functions that it registers.
default_cfgs = generate_default_cfgs({name: dict(_CONFIG) for name in VARIANTS})


class TimmMobileFormer(MobileFormer):
    """Mobile-Former classifier with the methods of timm's models.

    Args:
        variant: name of a published model.
        num_classes: number of classes. With 0, the model returns the input of the last linear layer.
        pretrained: path of a weights file for :func:`mobile_former.load_weights`; None for random weights.
        options: further arguments of :class:`mobile_former.MobileFormer`.

    Attributes:
        num_features: channels of the last feature map.
        head_hidden_size: input features of the last linear layer.
        pretrained_cfg: timm's description of the model, a dictionary with ``input_size``, ``mean``, ``std``,
            ``crop_pct``, ….
        default_cfg: older name of ``pretrained_cfg``.
        feature_info: list of dictionaries with the channels, stride and module name of each feature map.

    Raises:
        InputError: an argument is invalid for :class:`mobile_former.MobileFormer`, or the weights do not fit.
        FileNotFoundError: the weights file does not exist.
    """

    def __init__(self, variant: str, num_classes: int = 1000, pretrained: str | Path | None = None, **options):
        super().__init__(variant, num_classes or _CONFIG["num_classes"], **options)
        if pretrained is not None:
            load_weights(self, pretrained)
        if num_classes == 0:
            self.reset_classifier(0)
        self.num_features = self.backbone.channels[32]
        self.head_hidden_size = VARIANTS[variant].features
        self.pretrained_cfg = self.default_cfg = _CONFIG | {"architecture": variant}
        self.feature_info = _feature_info(self.backbone)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits ``(B, num_classes)`` of images ``(B, in_chans, H, W)``.

        With ``num_classes=0``, the input of the last linear layer is returned instead, ``(B, head_hidden_size)``.
        """
        return self.forward_head(self.forward_features(images))

    def forward_features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the last feature map and the tokens from images ``(B, in_chans, H, W)``.

        Returns:
            The feature map ``(B, C, ⌈H/32⌉, ⌈W/32⌉)`` and the tokens ``(B, M, d)``.
        """
        maps, tokens = self.backbone(images)
        return maps[32], tokens

    def forward_head(self, features: tuple[Tensor, Tensor], pre_logits: bool = False) -> Tensor:
        """Apply the classifier.

        Args:
            features: tuple of the feature map and the tokens, as returned by :meth:`forward_features`.
            pre_logits: True to leave out the last linear layer.

        Returns:
            The logits, ``(B, num_classes)``. If ``pre_logits`` is True, the input of the last linear layer is returned
            instead, ``(B, head_hidden_size)``.
        """
        if not pre_logits:
            return self.classifier(*features)
        return self.classifier.hidden(*features)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the last linear layer by a new one.

        Args:
            num_classes: number of classes. With 0, the last linear layer is removed.
            global_pool: ``"avg"`` or None. Both values mean average pooling.

        Raises:
            InputError: another pooling is requested.
        """
        _require_average_pooling(global_pool)
        super().reset_classifier(num_classes)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Enable or disable gradient checkpointing, see :func:`mobile_former.checkpoint_gradients`."""
        checkpoint_gradients(self, enable)


class TimmFeatures(nn.Module):
    """Feature extractor with the interface of timm's models for ``features_only=True``.

    Args:
        backbone: backbone of a model. It is modified: the blocks after the last requested feature map are removed.
        out_indices: indices of the feature maps to return. Indices 0, 1, 2 and 3 are the maps at strides 4, 8, 16 and
            32. Negative indices count from the end. An int ``n`` requests the last ``n`` maps, and None requests all
            four.
        pretrained_cfg: timm's description of the model.

    Attributes:
        feature_info: timm's ``FeatureInfo``, with ``channels()``, ``reduction()`` and ``module_name()`` of the maps.

    Raises:
        InputError: an index does not exist.
    """

    def __init__(self, backbone: Backbone, out_indices: int | Sequence[int] | None, pretrained_cfg: dict):
        super().__init__()
        info = _feature_info(backbone)
        indices = range(len(info)) if out_indices is None else out_indices
        indices = range(-indices, 0) if isinstance(indices, int) else indices
        if not indices or any(not -len(info) <= index < len(info) for index in indices):
            raise InputError(
                f"out_indices is {out_indices}: the maps are 0, 1, 2 and 3, at strides {[i['reduction'] for i in info]}"
            )
        self.feature_info = FeatureInfo(info, tuple(i % len(info) for i in indices))
        self.pretrained_cfg = self.default_cfg = pretrained_cfg
        strides = backbone.strides
        needed = len(strides) - strides[::-1].index(max(self.feature_info.reduction()))
        backbone.blocks, backbone.strides = backbone.blocks[:needed], strides[:needed]
        self.backbone = backbone

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the list of feature maps of images ``(B, in_chans, H, W)``, in the order of ``out_indices``."""
        maps, _ = self.backbone(images)
        return [maps[stride] for stride in self.feature_info.reduction()]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Enable or disable gradient checkpointing, see :func:`mobile_former.checkpoint_gradients`."""
        checkpoint_gradients(self, enable)


def create(
    name: str,
    pretrained: bool = False,
    *,
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: Mapping | None = None,
    cache_dir: str | Path | None = None,
    features_only: bool = False,
    out_indices: int | Sequence[int] | None = None,
    num_classes: int | None = None,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    global_pool: str | None = None,
    **options,
) -> TimmMobileFormer | TimmFeatures:
    """Build a published model. ``timm.create_model`` calls this function.

    Args:
        name: name of a published model.
        pretrained: True to load weights, False for random weights. There are no default weights: give the path of a
            weights file under the key ``"file"``, or the name of a repository on the Hugging Face Hub under the key
            ``"hf_hub_id"``, in ``pretrained_cfg`` or ``pretrained_cfg_overlay``.
        pretrained_cfg: timm's description of the model: a mapping, ``PretrainedCfg`` or ``DefaultCfg``.
        pretrained_cfg_overlay: changes to the description, such as ``{"file": path}`` for a weights file.
        cache_dir: folder in which files from the Hugging Face Hub are cached; default: the cache folder of
            huggingface_hub.
        features_only: return a :class:`TimmFeatures` instead of a :class:`TimmMobileFormer`.
        out_indices: indices of the feature maps to return with ``features_only``, see :class:`TimmFeatures`.
        num_classes: number of classes; default: the number in ``pretrained_cfg``, or 1000. With 0, the model returns
            the input of the last linear layer.
        drop_rate: dropout rate before the last linear layer.
        drop_path_rate: stochastic depth rate of the last block. The rate increases linearly with depth.
        global_pool: ``"avg"`` or None. Both values mean average pooling.
        options: ``in_chans`` and ``spatial_dynamic_relu`` of :class:`mobile_former.MobileFormer`.

    Raises:
        InputError: ``pretrained`` is True but no weights are given, the weights cannot be downloaded or do not fit, or
            an option is invalid.
        FileNotFoundError: the weights file does not exist.
    """
    if isinstance(pretrained_cfg, str):
        raise InputError(f"{name} has no tag {pretrained_cfg!r}: leave the tag out of the model's name")
    options.pop("pretrained_model_args", None)  # timm's copy of the options that a "local-dir:" or "hf-hub:" model has
    if unknown := sorted(options.keys() - _OPTIONS):
        raise InputError(f"{name} has no option {unknown[0]!r}: leave it out")
    _require_average_pooling(global_pool)
    if pretrained_cfg is not None and not isinstance(pretrained_cfg, Mapping):
        pretrained_cfg = getattr(pretrained_cfg, "default", pretrained_cfg).to_dict()  # a DefaultCfg or PretrainedCfg
    given = dict(pretrained_cfg or {}) | dict(pretrained_cfg_overlay or {})
    weights, hub_options, hub_config = _weights(name, given, cache_dir) if pretrained else (None, {}, {})
    config = _CONFIG | {"architecture": name} | hub_config | given
    model = TimmMobileFormer(
        name,
        num_classes=config["num_classes"] if num_classes is None else num_classes,
        pretrained=weights,
        dropout=drop_rate,
        drop_path=drop_path_rate,
        **hub_options | options,
    )
    model.pretrained_cfg = model.default_cfg = config
    return TimmFeatures(model.backbone, out_indices, config) if features_only else model


def _entry_point(name: str) -> Callable[..., nn.Module]:
    """Return a function that builds the model ``name``. timm's model registry stores this function."""

    def entry_point(pretrained: bool = False, **options) -> TimmMobileFormer | TimmFeatures:
        return create(name, pretrained, **options)

    entry_point.__name__ = entry_point.__qualname__ = name
    entry_point.__doc__ = create.__doc__
    return entry_point


def _weights(name: str, given: Mapping, cache_dir: str | Path | None) -> tuple[Path, dict, dict]:
    """Find the weights file of a model. If the file is on the Hugging Face Hub, it is downloaded.

    Args:
        name: name of the model, for error messages.
        given: timm's description of the model. It contains the path of a weights file under the key ``"file"``, or the
            name of a repository on the Hub under the key ``"hf_hub_id"``.
        cache_dir: folder in which downloads are cached; None for the cache folder of huggingface_hub.

    Returns:
        The path of the weights file, a dictionary of options for the model, and a dictionary of entries for
        ``pretrained_cfg``. Both dictionaries come from the repository on the Hub. For a local file, they are empty.

    Raises:
        InputError: ``given`` contains neither key, or the download fails.
    """
    if given.get("file"):
        path = Path(given["file"])
        if given.get("source") == "local-dir":  # timm gives the folder
            path /= WEIGHTS if (path / WEIGHTS).is_file() else "pytorch_model.bin"
        return path, {}, {}
    if given.get("hf_hub_id"):
        folder = fetch(given["hf_hub_id"], cache_dir=cache_dir)
        config = read_config(folder / CONFIG)
        options = {option: config[option] for option in _OPTIONS}
        return (
            folder / WEIGHTS,
            options,
            {
                "num_classes": config["num_classes"],
                "input_size": (config["in_chans"], config["image_size"], config["image_size"]),
                "crop_pct": config["crop_fraction"],
                "mean": tuple(config["mean"]),
                "std": tuple(config["std"]),
            },
        )
    raise InputError(
        f"pretrained=True: there are no weights of {name} to download. Give a file, such as the authors', by "
        "pretrained_cfg_overlay={'file': 'path/to/weights'}"
    )


def _require_average_pooling(global_pool: str | None) -> None:
    if global_pool not in (None, "avg"):
        raise InputError(f"global_pool is {global_pool!r}: Mobile-Former supports only 'avg'")


def _feature_info(backbone: Backbone) -> list[dict]:
    """Return the list from which timm's ``FeatureInfo`` is built.

    The list has one dictionary for each feature map, with the number of channels, the stride and the module name.
    """
    last = {stride: number for number, stride in enumerate(backbone.strides)}
    return [
        {"num_chs": channels, "reduction": stride, "module": f"backbone.blocks.{last[stride]}"}
        for stride, channels in backbone.channels.items()
    ]


with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "Overwriting mobile_former_")  # this module is imported again
    globals().update({name: register_model(_entry_point(name)) for name in VARIANTS})
