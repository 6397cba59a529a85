"""The published models under timm's names, options and conventions: ``timm.create_model("mobile_former_294m", …)``.

``import mobile_former.timm`` registers them; nothing else of this project needs timm.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mobile_former.errors import InputError
from mobile_former.layers.checkpointing import checkpoint_gradients
from mobile_former.layers.linear import linear
from mobile_former.model import Backbone, MobileFormer
from mobile_former.variants import VARIANTS
from mobile_former.weights.hub import CONFIG, WEIGHTS, fetch, read_config
from mobile_former.weights.loading import load_weights
from mobile_former.weights.usage import IMAGENET_MEAN, IMAGENET_STD

try:
    from timm.models import FeatureInfo, generate_default_cfgs, register_model
except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision that was built for another torch
    raise ImportError(
        f"mobile_former.timm registers the models with timm, which cannot be imported ({error}): pip install timm"
    ) from error

# What timm calls a pretrained_cfg: how images are prepared, and which layers depend on them and on the classes.
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


# timm looks for these in the module of the functions that it registers.
default_cfgs = generate_default_cfgs({name: dict(_CONFIG) for name in VARIANTS})


class TimmMobileFormer(MobileFormer):
    """A classifier with the methods that timm's models have.

    Args:
        variant: name of a published model.
        num_classes: number of logits; 0 gives the features before the last linear.
        pretrained: a weights file, read by :func:`mobile_former.load_weights`.
        options: those of :class:`mobile_former.MobileFormer`.

    Attributes:
        num_features: channels of the last map.
        head_hidden_size: features before the last linear.
        pretrained_cfg: timm's description of a model: ``input_size``, ``mean``, ``std``, ``crop_pct``, ….
        default_cfg: the same, by its older name.
        feature_info: of each map its channels, stride and module.

    Raises:
        InputError: as :class:`mobile_former.MobileFormer` and :func:`mobile_former.load_weights`.
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
        """Classify images ``(B, in_chans, H, W)``: logits ``(B, num_classes)``."""
        return self.forward_head(self.forward_features(images))

    def forward_features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The last map ``(B, C, ⌈H/32⌉, ⌈W/32⌉)`` and the tokens ``(B, M, d)``, both of which the classifier reads."""
        maps, tokens = self.backbone(images)
        return maps[32], tokens

    def forward_head(self, features: tuple[Tensor, Tensor], pre_logits: bool = False) -> Tensor:
        """From what :meth:`forward_features` gives to logits ``(B, num_classes)``.

        ``pre_logits`` leaves out the last linear: ``(B, head_hidden_size)``.
        """
        if not pre_logits:
            return self.classifier(*features)
        return self.classifier.hidden(*features)

    def get_classifier(self) -> nn.Module:
        """The last linear."""
        return self.classifier.logits

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a fresh last linear in place, for another number of classes; 0 leaves it out.

        Args:
            num_classes: number of logits.
            global_pool: the mean over the map, ``"avg"``, is the only one there is; None leaves it too.

        Raises:
            InputError: another pooling.
        """
        if global_pool not in (None, "avg"):
            raise InputError(f"global_pool is {global_pool!r}: Mobile-Former's classifier takes the mean, 'avg'")
        weight = self.classifier.features.weight
        self.num_classes = num_classes
        self.classifier.logits = (
            linear(len(weight), num_classes).to(weight.device, weight.dtype) if num_classes else nn.Identity()
        )

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep less while training, see :func:`mobile_former.checkpoint_gradients`."""
        checkpoint_gradients(self, enable)


class TimmFeatures(nn.Module):
    """A backbone with the interface of timm's ``features_only=True``.

    Args:
        backbone: of one of the models; blocks after the last map that is wanted are taken out of it.
        out_indices: which maps to give: 0, 1, 2, 3 are those at strides 4, 8, 16 and 32; negative ones count from the
            end, and a number alone is that of the last maps. None: all four.
        pretrained_cfg: timm's description of the model.

    Attributes:
        feature_info: ``channels()``, ``reduction()`` and ``module_name()`` of the maps, and more; timm's own class.

    Raises:
        InputError: an index that does not exist.
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
        """The maps of images ``(B, in_chans, H, W)``, in the order of ``out_indices``."""
        maps, _ = self.backbone(images)
        return [maps[stride] for stride in self.feature_info.reduction()]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep less while training, see :func:`mobile_former.checkpoint_gradients`."""
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
    **options,
) -> TimmMobileFormer | TimmFeatures:
    """Build a model as ``timm.create_model`` asks for it.

    Args:
        name: of a published model.
        pretrained: load weights, which needs a file: there are none to download.
        pretrained_cfg: timm's description of the model, in place of its own.
        pretrained_cfg_overlay: what differs from it: ``{"file": path}`` names a weights file, the authors' for example.
        cache_dir: where files from the Hugging Face Hub are kept.
        features_only: see :class:`TimmFeatures`, and there
        out_indices: which maps to give.
        num_classes: number of logits, 0 for features; default: that of the description.
        drop_rate: rate before the last linear.
        drop_path_rate: stochastic depth's rate at the last block.
        options: others of :class:`mobile_former.MobileFormer`: ``in_chans``, ``spatial_dynamic_relu``.

    Raises:
        InputError: no weights to load, or options that cannot be.
        FileNotFoundError: no such weights file.
    """
    if isinstance(pretrained_cfg, str):
        raise InputError(f"timm's {name} has one set of weights, and so no tag {pretrained_cfg!r}: leave it out")
    if pretrained_cfg is not None and not isinstance(pretrained_cfg, Mapping):
        pretrained_cfg = pretrained_cfg.to_dict()  # timm's own class
    given = dict(pretrained_cfg or {}) | dict(pretrained_cfg_overlay or {})
    weights, own, told = _weights(name, given, cache_dir) if pretrained else (None, {}, {})
    config = _CONFIG | {"architecture": name} | told | given
    model = TimmMobileFormer(
        name,
        num_classes=config["num_classes"] if num_classes is None else num_classes,
        pretrained=weights,
        dropout=drop_rate,
        drop_path=drop_path_rate,
        **own | options,
    )
    model.pretrained_cfg = model.default_cfg = config
    return TimmFeatures(model.backbone, out_indices, config) if features_only else model


def _entry_point(name: str) -> Callable[..., nn.Module]:
    """The function that timm knows by the model's name."""

    def entry_point(pretrained: bool = False, **options) -> TimmMobileFormer | TimmFeatures:
        return create(name, pretrained, **options)

    entry_point.__name__ = entry_point.__qualname__ = name
    entry_point.__doc__ = create.__doc__
    return entry_point


def _weights(name: str, given: Mapping, cache_dir: str | Path | None) -> tuple[Path, dict, dict]:
    """A weights file; what is told beside it on the Hub of the model's options, and of the rest, in timm's words."""
    if given.get("file"):
        return Path(given["file"]), {}, {}
    if given.get("hf_hub_id"):
        folder = fetch(given["hf_hub_id"], cache_dir=cache_dir)
        told = read_config(folder / CONFIG)
        side = told["image_size"]
        options = {option: told[option] for option in ("in_chans", "spatial_dynamic_relu")}
        return (
            folder / WEIGHTS,
            options,
            {
                "num_classes": told["num_classes"],
                "input_size": (told["in_chans"], side, side),
                "crop_pct": told["crop_fraction"],
                "mean": tuple(told["mean"]),
                "std": tuple(told["std"]),
            },
        )
    raise InputError(
        f"pretrained=True: there are no weights of {name} to download. Give a file, the authors' for example, by "
        "pretrained_cfg_overlay={'file': 'path/to/weights'}"
    )


def _feature_info(backbone: Backbone) -> list[dict]:
    """Channels, stride and module of each map, as timm's FeatureInfo takes them."""
    last = {stride: number for number, stride in enumerate(backbone.strides)}
    return [
        {"num_chs": channels, "reduction": stride, "module": f"backbone.blocks.{last[stride]}"}
        for stride, channels in backbone.channels.items()
    ]


for _name in VARIANTS:
    register_model(_entry_point(_name))
