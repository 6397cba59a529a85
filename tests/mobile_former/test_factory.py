import pytest

import mobile_former
from mobile_former import InputError

MODELS = mobile_former.list_models()


def test_models_are_listed_by_size():
    assert MODELS[0] == "mobile_former_26m"
    assert MODELS[-1] == "mobile_former_508m"
    sizes = [int(name.rsplit("_", 1)[1][:-1]) for name in MODELS]
    assert sizes == sorted(sizes)
    assert len(sizes) == 7


def test_each_model_has_its_own_function_with_the_options_of_create_model():
    for name in MODELS:
        model = getattr(mobile_former, name)(num_classes=3, in_chans=1, dropout=0.2, spatial_dynamic_relu=True)
        assert (model.variant, model.num_classes, model.in_chans) == (name, 3, 1)
        assert model.classifier.dropout.p == 0.2
        assert model.spatial_dynamic_relu


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mobile_former.create_model("mobile_former_295m"), "mobile_former_294m"),
        (lambda: mobile_former.create_model("mobile_former_26m", num_classes=0), "at least 1"),
        (lambda: mobile_former.create_model("mobile_former_26m", dropout=1.0), "below 1"),
        (lambda: mobile_former.create_model("mobile_former_26m", drop_path=-0.1), "below 1"),
        (lambda: mobile_former.create_model("mobile_former_26m", in_chans=0), "at least 1"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(InputError, match=message):
        call()


@pytest.mark.parametrize("pretrained", [True, False])
def test_a_bool_instead_of_a_weights_file_is_an_error(pretrained):
    with pytest.raises(
        InputError, match=rf"pretrained is {pretrained}: there are no default weights; give a weights file"
    ):
        mobile_former.mobile_former_26m(pretrained=pretrained)
