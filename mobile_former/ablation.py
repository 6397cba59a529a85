"""Ablations: remove or replace a part of a model, to measure how much the part contributes.

The modules of the published models contain no code for ablations. An ablation replaces some modules of a built model by
the small modules in this file.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobile_former.block import MobileFormerBlock
from mobile_former.bridge import FormerToMobile, MobileToFormer, add_position
from mobile_former.errors import InputError, nearest
from mobile_former.former import Former
from mobile_former.layers.dynamic_relu import DynamicReLU
from mobile_former.model import Backbone, MobileFormer


@dataclass(frozen=True)
class Ablation:
    """Definition of one ablation: the removal or replacement of a part of a model.

    Attributes:
        apply: function that removes or replaces the part in a model, in place. Its arguments are the model and the text
            after ``=`` in the name of the ablation, such as ``"3"`` for ``tokens=3``. The text is empty if the name has
            no ``=``. The function returns True if the model contained the part.
        takes: description of the text after ``=``, for error messages; empty if the ablation takes no such text.
    """

    apply: Callable[[nn.Module, str], bool]
    takes: str = ""


def ablate(model: nn.Module, names: str) -> None:
    """Remove or replace parts of a model in place.

    The ablations are:

    - ``no_bridge``: only the convolutional part (Mobile) remains. The bridges between feature map and tokens, the
      transformer (Former) and the classifier's token input are removed. Dynamic ReLU becomes ReLU.
    - ``relu``: ReLU instead of dynamic ReLU.
    - ``projected_bridge``: standard cross-attention in the bridges, with linear projections of the feature map and of
      the tokens. The published bridges project only the tokens.
    - ``no_ffn``: the transformer (Former) has no feed-forward network.
    - ``tokens=N``: ``N`` tokens instead of the published number.

    Args:
        model: a newly built model. Load weights after the ablation, because the replacements have new parameters.
        names: name of an ablation, or several names separated by commas.

    Raises:
        InputError: a name or number is invalid, or the model does not contain the part to ablate.
    """
    apply_ablations(model, names, ABLATIONS)


def apply_ablations(model: nn.Module, names: str, known: Mapping[str, Ablation]) -> None:
    """Apply ablations to a model: remove or replace parts of the model in place.

    Args:
        model: a newly built model.
        names: name of an ablation, or several names separated by commas.
        known: dictionary from the name of each supported ablation to its definition.

    Raises:
        InputError: a name or number is invalid, or the model does not contain the part to ablate.
    """
    given = ablation_names(names)
    for position, entry in enumerate(given):
        name, _, value = entry.partition("=")
        if name not in known:
            raise InputError(f"no ablation is named {name!r}: {nearest(name, known)}")
        if bool(value) != bool(known[name].takes):
            wanted = f"give {known[name].takes}, as {name}=" if known[name].takes else "it takes no value"
            raise InputError(f"ablation {entry!r}: {wanted}")
        if not known[name].apply(model, value):
            before = f" after {', '.join(given[:position])}" if position else ""
            raise InputError(f"ablation {entry!r} removes nothing from {type(model).__name__}{before}: leave it out")


def ablation_names(names: str) -> list[str]:
    """Split a comma-separated string into a list of names, and remove the spaces around each name."""
    return [name.strip() for name in names.split(",")]


def model_label(options: Mapping[str, Any]) -> str:
    """Return a short name of a run's model for tables and folders: model, backbone and ablations, with hyphens.

    Args:
        options: hyperparameters of the run, with ``name`` and optionally ``backbone`` and ``ablation``.
    """
    ablations = ablation_names(options.get("ablation") or "")
    return "-".join(filter(None, (options["name"], options.get("backbone"), *ablations)))


def is_ablated(model: nn.Module) -> bool:
    """Return whether a model contains a module that an ablation inserted."""
    return any(isinstance(part, Ablated) for part in model.modules())


def replace_parts(model: nn.Module, kind: type[nn.Module], make: Callable[[nn.Module], nn.Module]) -> bool:
    """Replace all submodules of one type in a model.

    Args:
        model: the model, which is modified in place.
        kind: type of the submodules to replace. Instances of its subclasses are kept.
        make: function that takes a submodule and returns its replacement.

    Returns:
        True if at least one submodule was replaced.
    """
    found = False
    for parent in list(model.modules()):
        for name, part in list(parent.named_children()):
            if type(part) is kind:
                new = make(part)
                if not any(parameter.requires_grad for parameter in part.parameters()):
                    new.requires_grad_(False)  # a frozen part is unused, as in the last block of E2E-MF
                setattr(parent, name, new)
                found = True
    return found


class Ablated:
    """Base class of the modules that ablations insert into a model."""


class StaticReLU(Ablated, nn.Module):
    """Plain ReLU with the interface of :class:`DynamicReLU`. It ignores tokens and mixing weights."""

    def forward(self, x: Tensor, tokens: Tensor, mixing: Tensor | None = None) -> Tensor:
        """Apply ReLU to the feature map ``x``, ``(B, C, H, W)``. The other arguments are ignored."""
        return F.relu(x)


class Unbridged(Ablated, nn.Module):
    """Replacement of :class:`MobileToFormer` that ignores the feature map and sets the tokens to zero."""

    def forward(self, x: Tensor, tokens: Tensor, padding: Tensor | None = None) -> tuple[Tensor, None]:
        """Return zeros in the shape of the tokens, ``(B, M, d)``, and None instead of the attention logits."""
        return torch.zeros_like(tokens), None


class MapAlone(Ablated, nn.Module):
    """Replacement of :class:`FormerToMobile` that returns the feature map unchanged and ignores the tokens."""

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """Return the feature map ``x``, ``(B, C, H, W)``, unchanged."""
        return x


class ProjectedMobileToFormer(Ablated, MobileToFormer):
    """:class:`MobileToFormer` with projected keys and values, as in standard cross-attention.

    Args:
        part: the bridge to replace. Its sizes and options are copied, but not its weights.
    """

    def __init__(self, part: MobileToFormer):
        channels, token_dim = part.output.in_features, part.output.out_features
        super().__init__(channels, token_dim, part.drop_path.rate, gated=part.gate is not None)
        self.key, self.value = _rotation(channels), _rotation(channels)

    def keys_and_values(self, x: Tensor, map_position: Tensor | None) -> tuple[Tensor, Tensor]:
        """Project the feature map to keys and values.

        Args:
            x: feature map, ``(B, C, H, W)``.
            map_position: position embedding of the feature map. It is added for the keys, but not for the values. None
                for no embedding.

        Returns:
            The keys and the values, each ``(B, C, H, W)``.
        """
        return self.key(add_position(x, map_position)), self.value(x)


class ProjectedFormerToMobile(Ablated, FormerToMobile):
    """:class:`FormerToMobile` with projected queries and outputs, as in standard cross-attention.

    Args:
        part: the bridge to replace. Its sizes and options are copied, but not its weights.
    """

    def __init__(self, part: FormerToMobile):
        channels, token_dim = part.key.out_features, part.key.in_features
        super().__init__(channels, token_dim, part.drop_path.rate)
        self.query, self.project = _rotation(channels), _rotation(channels)

    def queries(self, x: Tensor) -> Tensor:
        """Project the feature map ``(B, C, H, W)`` to queries of the same shape."""
        return self.query(x)

    def output(self, gathered: Tensor) -> Tensor:
        """Project the attention output ``(B, C, H, W)`` to the same shape."""
        return self.project(gathered)


class AttentionAlone(Ablated, Former):
    """Self-attention layer that replaces :class:`Former`. It has no feed-forward network.

    Args:
        part: the layer to replace. Its sizes and options are copied, but not its weights.
    """

    def __init__(self, part: Former):
        super().__init__(part.query.in_features, part.drop_path.rate)
        del self.ffn, self.ffn_norm

    def forward(self, tokens: Tensor, position: Tensor | None = None) -> Tensor:
        """Update the tokens by self-attention. The arguments are those of :meth:`Former.forward`."""
        return self.attend(tokens, position)


def _rotation(channels: int) -> nn.Conv2d:
    """Build a pointwise convolution with equal numbers of input and output channels.

    The weight is a random orthogonal matrix, so that the convolution preserves the scale of a feature map.
    """
    layer = nn.Conv2d(channels, channels, 1)
    nn.init.orthogonal_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def share_slopes(model: nn.Module) -> bool:
    """Switch all blocks of a model to the spatially shared dynamic ReLU, with the same slopes at all positions.

    Returns:
        True if at least one block had the spatially aware dynamic ReLU, whose slopes differ between positions.
    """
    blocks = [part for part in model.modules() if isinstance(part, MobileFormerBlock)]
    aware = any(block.spatial_dynamic_relu for block in blocks)
    for block in blocks:
        block.spatial_dynamic_relu = False
    return aware


def _relu(model: nn.Module, _: str) -> bool:
    share_slopes(model)  # otherwise the blocks would still compute token weights for dynamic ReLU
    return replace_parts(model, DynamicReLU, lambda part: StaticReLU())


def _no_bridge(model: nn.Module, _: str) -> bool:
    found = False
    # A classifier loses its own bridge too. A detector keeps the bridges of its head.
    for scope in [model] if isinstance(model, MobileFormer) else _backbones(model):
        found |= replace_parts(scope, MobileToFormer, lambda part: Unbridged())
        replace_parts(scope, FormerToMobile, lambda part: MapAlone())
        replace_parts(scope, Former, lambda part: nn.Identity())
        _relu(scope, "")
    if found:
        for backbone in _backbones(model):
            backbone.tokens.requires_grad_(False)  # no gradient reaches them
    return found


def _projected_bridge(model: nn.Module, _: str) -> bool:
    return replace_parts(model, MobileToFormer, ProjectedMobileToFormer) & replace_parts(
        model, FormerToMobile, ProjectedFormerToMobile
    )


def _no_ffn(model: nn.Module, _: str) -> bool:
    return replace_parts(model, Former, AttentionAlone)


def _tokens(model: nn.Module, value: str) -> bool:
    if not value.isdecimal() or int(value) < 1:
        raise InputError(f"ablation 'tokens={value}': give a number of tokens, 1 or more")
    for backbone in _backbones(model):
        trained = backbone.tokens.requires_grad
        backbone.tokens = nn.Parameter(torch.randn(int(value), backbone.tokens.shape[1]), requires_grad=trained)
    return bool(_backbones(model))


def _backbones(model: nn.Module) -> list[Backbone]:
    return [part for part in model.modules() if isinstance(part, Backbone)]


ABLATIONS: dict[str, Ablation] = {
    "no_bridge": Ablation(_no_bridge),
    "relu": Ablation(_relu),
    "projected_bridge": Ablation(_projected_bridge),
    "no_ffn": Ablation(_no_ffn),
    "tokens": Ablation(_tokens, takes="a number"),
}
