"""Convert the tensor names in the checkpoints of Mobile-Former's authors to this project's names."""

import re

from torch import Tensor


def our_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert the tensor names in a checkpoint of Mobile-Former's authors to this project's names.

    Args:
        state: dictionary from names to tensors.

    Returns:
        The dictionary with the new names. If ``state`` is not in the authors' format, it is returned unchanged.
    """
    if "tokens.weight" not in state:
        return state
    # Only downsampling blocks have a fourth convolution, and only lite blocks a sequence `conv`.
    down = {name.split(".")[1] for name in state if re.match(r"features\.\w+\.conv4\.", name)}

    def rename(name: str) -> str:
        block = re.match(r"features\.(\w+)\.", name)
        rules = _AUTHORS_BLOCK | (_AUTHORS_DOWN if block and block[1] in down else _AUTHORS_SAME)
        for pattern, replacement in (_AUTHORS_TOP | rules).items():
            name = re.sub(pattern, replacement, name)
        return name

    return {rename(name): tensor for name, tensor in state.items()}


_AUTHORS_TOP = {
    r"^tokens\.weight$": "backbone.tokens",
    r"^stem\.0\.": "backbone.stem.conv.",
    r"^stem\.1\.": "backbone.stem.norm.",
    r"^features\.(\w+)\.": r"backbone.blocks.\1.",
    r"^local_global\.": "classifier.local_global.",
    r"^classifier\.conv\.1\.": "classifier.expand.conv.",
    r"^classifier\.conv\.2\.": "classifier.expand.norm.",
    r"^classifier\.fc\.0\.": "classifier.features.",
    r"^classifier\.fc\.1\.": "classifier.norm.",
    r"^classifier\.classifier\.1\.": "classifier.logits.",
}
_AUTHORS_BLOCK = {
    r"\.local_global\.alpha\.0\.": ".to_former.gate.",
    r"\.local_global\.q\.": ".to_former.query.",
    r"\.local_global\.proj\.": ".to_former.output.",
    r"\.local_global\.layer_norm\.": ".to_former.norm.",
    r"\.global_block\.q\.": ".former.query.",
    r"\.global_block\.channel_mlp\.": ".former.output.",
    r"\.global_block\.layer_norm\.": ".former.attention_norm.",
    r"\.global_block\.": ".former.",
    r"\.global_local\.k\.": ".to_mobile.key.",
    r"\.global_local\.proj\.": ".to_mobile.value.",
    r"\.hyper\.0\.": ".reduce.",
    r"\.hyper\.2\.": ".slopes.",
    r"(blocks\.\w+)\.conv\.0\.": r"\1.depthwise.conv.",
    r"(blocks\.\w+)\.conv\.1\.": r"\1.depthwise.norm.",
    r"(blocks\.\w+)\.conv\.4\.": r"\1.project.conv.",
    r"(blocks\.\w+)\.conv\.5\.": r"\1.project.norm.",
    r"\.conv(\d)\.0\.": r".conv\1.conv.",
    r"\.conv(\d)\.1\.": r".conv\1.norm.",
}
_AUTHORS_SAME = {
    r"\.conv1\.": ".mobile.expand.",
    r"\.hyper1\.": ".mobile.expand_relu.",
    r"\.conv2\.": ".mobile.depthwise.",
    r"\.hyper2\.": ".mobile.depthwise_relu.",
    r"\.conv3\.": ".mobile.project.",
}
_AUTHORS_DOWN = {
    r"\.conv1\.": ".mobile.depthwise1.",
    r"\.hyper1\.": ".mobile.relu1.",
    r"\.conv2\.": ".mobile.project1.",
    r"\.conv3\.": ".mobile.depthwise2.",
    r"\.hyper3\.": ".mobile.relu2.",
    r"\.conv4\.": ".mobile.project2.",
}
