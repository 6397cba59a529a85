import pytest
import torch

import mobile_former
from mobile_former import InputError
from mobile_former.ablation import ablate
from mobile_former.weights.backbone import load_backbone_weights


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "x.safetensors"
    mobile_former.save_weights(mobile_former.mobile_former_26m(num_classes=3), path)
    return path


def test_only_the_backbone_is_loaded(path):
    model, source = (mobile_former.mobile_former_26m(spatial_dynamic_relu=spatial) for spatial in (True, False))
    classifier = {name: tensor.clone() for name, tensor in model.classifier.state_dict().items()}
    load_backbone_weights(model.backbone, "mobile_former_26m", path)
    mobile_former.load_weights(source, path)
    assert all(map(torch.equal, model.backbone.state_dict().values(), source.backbone.state_dict().values()))
    assert all(torch.equal(model.classifier.state_dict()[name], tensor) for name, tensor in classifier.items())


def test_a_backbone_of_another_shape_is_an_error(path):
    ablated, grey = (mobile_former.mobile_former_26m(in_chans=chans) for chans in (3, 1))
    ablate(ablated, "tokens=2")
    with pytest.raises(InputError, match="holds the published mobile_former_26m, not an ablated one"):
        load_backbone_weights(ablated.backbone, "mobile_former_26m", path)
    with pytest.raises(InputError, match="in_chans=3"):
        load_backbone_weights(grey.backbone, "mobile_former_26m", path)
    with pytest.raises(InputError, match="holds the weights of mobile_former_26m, but the model is mobile_former_52m"):
        load_backbone_weights(grey.backbone, "mobile_former_52m", path)
