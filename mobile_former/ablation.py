"""Ablations: a freshly built model less one of the parts that the paper argues for.

A published model knows nothing of them: each part that is taken out has one of the small modules below in its place.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobile_former.block import MobileFormerBlock
from mobile_former.bridge import FormerToMobile, MobileToFormer, located, split_channels
from mobile_former.errors import InputError, nearest
from mobile_former.former import Former
from mobile_former.layers.dynamic_relu import DynamicReLU
from mobile_former.model import Backbone, MobileFormer


@dataclass(frozen=True)
class Ablation:
    """One way to take something out of a model.

    Attributes:
        apply: takes it out, given what stands behind the name and ``=``, if anything; tells whether it was there.
        takes: what has to stand there; nothing where empty.
    """

    apply: Callable[[nn.Module, str], bool]
    takes: str = ""


def ablate(model: nn.Module, names: str) -> None:
    """Take parts out of a model, in place.

    Args:
        model: freshly built, before weights are loaded, since parts are replaced by new ones.
        names: one of these, or several with commas between: ``no_bridge`` (Mobile alone: neither side hears of the
            other, so that nothing is left for Former, for the tokens in the classifier and for dynamic ReLU either),
            ``relu`` (in place of dynamic ReLU), ``projected_bridge`` (with the linear projections of usual
            cross-attention on the map's side too), ``no_ffn`` (Former without its feed-forward layer), ``tokens=N``.

    Raises:
        InputError: another name or number, or a model that has nothing that could be taken out.
    """
    apply_ablations(model, names, ABLATIONS)


def apply_ablations(model: nn.Module, names: str, known: Mapping[str, Ablation]) -> None:
    """As :func:`ablate`, for the ablations that are known of a task's models."""
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
            raise InputError(f"ablation {entry!r} finds nothing to take out of {type(model).__name__}{before}")


def ablation_names(names: str) -> list[str]:
    """What stands between the commas."""
    return [name.strip() for name in names.split(",")]


def is_ablated(model: nn.Module) -> bool:
    """Whether another module stands in the place of a published part."""
    return any(isinstance(part, Ablated) for part in model.modules())


def replace_parts(model: nn.Module, kind: type[nn.Module], make: Callable[[nn.Module], nn.Module]) -> bool:
    """Put ``make(part)`` in the place of every part of a kind; tells whether there was any."""
    found = False
    for parent in list(model.modules()):
        for name, part in list(parent.named_children()):
            if type(part) is kind:
                new = make(part)
                if not any(parameter.requires_grad for parameter in part.parameters()):
                    new.requires_grad_(False)  # nothing reads it, see E2E-MF's last block
                setattr(parent, name, new)
                found = True
    return found


class Ablated:
    """What stands in the place of a published part."""


class StaticReLU(Ablated, nn.Module):
    """ReLU, called as :class:`DynamicReLU` is."""

    def forward(self, x: Tensor, tokens: Tensor, mixing: Tensor | None = None) -> Tensor:
        """Activate ``(B, C, H, W)``, whatever the tokens."""
        return F.relu(x)


class Unbridged(Ablated, nn.Module):
    """In place of :class:`MobileToFormer`: tokens that know of nothing."""

    def forward(self, x: Tensor, tokens: Tensor, padding: Tensor | None = None) -> tuple[Tensor, None]:
        """Zeros ``(B, M, d)``, and no logits."""
        return torch.zeros_like(tokens), None


class MapAlone(Ablated, nn.Module):
    """In place of :class:`FormerToMobile`: a map that hears of no tokens."""

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """The map ``(B, C, H, W)`` as it is."""
        return x


class ProjectedMobileToFormer(Ablated, MobileToFormer):
    """The map's keys and values are projected, as in usual cross-attention.

    Args:
        part: in whose place it stands.
    """

    def __init__(self, part: MobileToFormer):
        channels, token_dim = part.output.in_features, part.output.out_features
        super().__init__(channels, token_dim, part.drop_path.rate, gated=part.gate is not None)
        self.key, self.value = _rotation(channels), _rotation(channels)

    def keys_and_values(self, x: Tensor, map_position: Tensor | None) -> tuple[Tensor, Tensor]:
        """As of :class:`MobileToFormer`."""
        return split_channels(self.key(located(x, map_position))), split_channels(self.value(x))


class ProjectedFormerToMobile(Ablated, FormerToMobile):
    """The map's queries are projected, and what it gathers, as in usual cross-attention.

    Args:
        part: in whose place it stands.
    """

    def __init__(self, part: FormerToMobile):
        channels, token_dim = part.key.out_features, part.key.in_features
        super().__init__(channels, token_dim, part.drop_path.rate)
        self.query, self.project = _rotation(channels), _rotation(channels)

    def queries(self, x: Tensor) -> Tensor:
        """Of ``(B, C, H, W)``, the same shape."""
        return self.query(x)

    def output(self, gathered: Tensor) -> Tensor:
        """Of ``(B, C, H, W)``, the same shape."""
        return self.project(gathered)


class AttentionAlone(Ablated, Former):
    """Former without its feed-forward layer, and the norm after it.

    Args:
        part: in whose place it stands.
    """

    def __init__(self, part: Former):
        super().__init__(part.query.in_features, part.drop_path.rate)
        del self.ffn, self.ffn_norm

    def forward(self, tokens: Tensor, position: Tensor | None = None) -> Tensor:
        """As of :class:`Former`."""
        return self.attend(tokens, position)


def _rotation(channels: int) -> nn.Conv2d:
    """A linear at every position of a map that begins as a rotation, so that no scale differs from the map's own."""
    layer = nn.Conv2d(channels, channels, 1)
    nn.init.orthogonal_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def share_slopes(model: nn.Module) -> bool:
    """Make dynamic ReLU spatially shared in all blocks; tells whether it was aware in any."""
    blocks = [part for part in model.modules() if isinstance(part, MobileFormerBlock)]
    aware = any(block.spatial_dynamic_relu for block in blocks)
    for block in blocks:
        block.spatial_dynamic_relu = False
    return aware


def _relu(model: nn.Module, _: str) -> bool:
    share_slopes(model)  # or blocks would go on mixing tokens for them
    return replace_parts(model, DynamicReLU, lambda part: StaticReLU())


def _no_bridge(model: nn.Module, _: str) -> bool:
    found = False
    # Without a backbone's bridge a classifier has no use for its own; a detector's head is another matter.
    for scope in [model] if isinstance(model, MobileFormer) else _backbones(model):
        found |= replace_parts(scope, MobileToFormer, lambda part: Unbridged())
        replace_parts(scope, FormerToMobile, lambda part: MapAlone())
        replace_parts(scope, Former, lambda part: nn.Identity())
        _relu(scope, "")
    if found:
        for backbone in _backbones(model):
            backbone.tokens.requires_grad_(False)  # which no gradient reaches
    return found


def _projected_bridge(model: nn.Module, _: str) -> bool:
    return replace_parts(model, MobileToFormer, ProjectedMobileToFormer) & replace_parts(
        model, FormerToMobile, ProjectedFormerToMobile
    )


def _no_ffn(model: nn.Module, _: str) -> bool:
    return replace_parts(model, Former, AttentionAlone)


def _tokens(model: nn.Module, value: str) -> bool:
    if not value.isdecimal() or int(value) < 1:
        raise InputError(f"ablation 'tokens={value}': give a number of tokens from 1")
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
