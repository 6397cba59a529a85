"""The inference form of E2E-MF, see :func:`mobile_former.deployment.deploy`."""

from torch import nn

from detection.models.e2e_mf import E2EMobileFormer
from mobile_former.deployment.deploy import inference_form


@inference_form.register
def _(module: E2EMobileFormer) -> nn.Module:
    module = inference_form.dispatch(nn.Module)(module)
    module.blocks[-1].is_read_on = False
    return module
