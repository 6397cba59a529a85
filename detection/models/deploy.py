"""The inference form of E2E-MF, see :func:`mobile_former.deployment.deploy.deploy`."""

from torch import nn

from detection.models.e2e_mf import E2EMobileFormer
from mobile_former.deployment.deploy import inference_form


@inference_form.register
def _(module: E2EMobileFormer) -> nn.Module:
    """Convert the parts to their inference forms.

    The last block skips the update of the map, because the updated map is unused.
    """
    module = inference_form.dispatch(nn.Module)(module)
    module.blocks[-1].updates_map = False
    return module
