"""Let :func:`mobile_former.deployment.deploy.deploy` convert E2E-MF detectors to a form with faster inference."""

from torch import nn

from detection.models.e2e_mf import E2EMobileFormer
from mobile_former.deployment.deploy import inference_form


@inference_form.register
def _(module: E2EMobileFormer) -> nn.Module:
    """Replace the submodules of an E2E-MF detector by faster modules for inference.

    The last block no longer updates the feature map, because nothing reads the updated map. The second classifier,
    which only training needs, is removed.
    """
    module = inference_form.dispatch(nn.Module)(module)
    module.blocks[-1].updates_map = False
    module.predict.classify_many = None
    return module
