import math
import pickle

import pytest
import torch

import mobile_former
from mobile_former import MobileFormer
from mobile_former.block import MobileFormerBlock

MODELS = mobile_former.list_models()


def images(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("size", [(32, 32), (33, 47), (65, 96)])
def test_features_have_the_promised_shapes_at_any_size(name, size):
    model = mobile_former.create_model(name, num_classes=7).eval()
    maps, tokens = model.forward_features(images(2, 3, *size))
    assert list(maps) == [4, 8, 16, 32]
    for stride, x in maps.items():
        assert x.shape == (2, model.backbone.channels[stride], *(math.ceil(side / stride) for side in size))
    assert tokens.shape == (2, *model.backbone.tokens.shape)
    assert model(images(2, 3, *size)).shape == (2, 7)


@pytest.mark.parametrize("spatial", [False, True])
@pytest.mark.parametrize("name", ["mobile_former_26m", "mobile_former_151m"])
@pytest.mark.parametrize("size", [(64, 64), (45, 71)])
def test_the_features_of_an_image_do_not_depend_on_its_padding(name, size, spatial):
    torch.manual_seed(0)
    model = mobile_former.create_model(name, spatial_dynamic_relu=spatial).double().eval()
    for parameter in model.parameters():  # larger than the initial ones, with which the inputs hardly matter
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    height, width = size
    image = images(1, 3, height, width).double()
    batch = images(2, 3, 96, 128, seed=1).double() * 100
    batch[0, :, :height, :width] = image[0]
    mask = torch.zeros(2, 96, 128, dtype=torch.bool)
    mask[0, height:] = True
    mask[0, :, width:] = True
    with torch.no_grad():
        alone, alone_tokens = model.forward_features(image)
        padded, padded_tokens = model.forward_features(batch, padding_mask=mask)
        other = batch.clone()
        other.masked_fill_(mask[:, None], -7.0)
        refilled, _ = model.forward_features(other, padding_mask=mask)
    torch.testing.assert_close(alone_tokens[0], padded_tokens[0])
    for stride, x in alone.items():
        content = (..., slice(x.shape[2]), slice(x.shape[3]))
        torch.testing.assert_close(x[0], padded[stride][0][content])
        torch.testing.assert_close(padded[stride][0][content], refilled[stride][0][content])
    logits = model.classifier(alone[32], alone_tokens)
    padding32 = torch.ones(2, 1, *padded[32].shape[2:], dtype=torch.bool)
    padding32[0, :, : alone[32].shape[2], : alone[32].shape[3]] = False
    padding32[1] = False
    torch.testing.assert_close(logits[0], model.classifier(padded[32], padded_tokens, padding32)[0])


def test_a_mask_without_padding_changes_nothing():
    model = mobile_former.mobile_former_52m(spatial_dynamic_relu=True).double().eval()
    x = images(2, 3, 50, 70).double()
    with torch.no_grad():
        plain, _ = model.forward_features(x)
        masked, _ = model.forward_features(x, padding_mask=torch.zeros(2, 50, 70, dtype=torch.bool))
    for stride in plain:
        torch.testing.assert_close(plain[stride], masked[stride])


@pytest.mark.parametrize(("name", "spatial"), [("mobile_former_26m", False), ("mobile_former_151m", True)])
def test_compiles_without_graph_breaks_to_the_same_outputs(name, spatial):
    torch._dynamo.reset()
    model = mobile_former.create_model(name, spatial_dynamic_relu=spatial).eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = images(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_compiled_model_trains():
    torch._dynamo.reset()
    model = mobile_former.mobile_former_26m(num_classes=4, drop_path=0.1)
    mobile_former.checkpoint_gradients(model)  # has no effect on a compiled model
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    compiled(images(4, 3, 32, 32)).square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert {int(value) for name, value in model.named_buffers() if name.endswith("num_batches_tracked")} == {1}


def test_exports_to_a_graph_with_the_same_outputs():
    model = mobile_former.mobile_former_26m().eval()
    x = images(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), model(x))


def test_exports_with_dynamic_batch_size_height_and_width():
    model = mobile_former.mobile_former_26m().eval()
    sizes = {
        0: torch.export.Dim("b", min=1, max=64),
        2: torch.export.Dim("h", min=33),
        3: torch.export.Dim("w", min=33),
    }
    exported = torch.export.export(model, (images(2, 3, 64, 96),), dynamic_shapes={"images": sizes}).module()
    for shape in ((1, 3, 50, 70), (5, 3, 96, 64)):
        with torch.no_grad():
            torch.testing.assert_close(exported(images(*shape)), model(images(*shape)))


@pytest.mark.parametrize("name", MODELS)
def test_bfloat16_autocast_and_channels_last_stay_near_float32(name):
    torch.manual_seed(0)
    model = mobile_former.create_model(name, num_classes=10).eval()
    x = images(2, 3, 64, 64)
    with torch.no_grad():
        expected = model(x)
        last = model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
        with torch.autocast("cpu", torch.bfloat16):
            rounded = model(x)
    torch.testing.assert_close(last, expected, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(rounded.float(), expected, rtol=0.1, atol=0.02)


def test_every_parameter_has_a_gradient():
    for spatial in (False, True):
        model = mobile_former.mobile_former_96m(num_classes=4, spatial_dynamic_relu=spatial)
        model(images(4, 3, 64, 64)).square().mean().backward()
        assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]


def test_pickles():
    model = mobile_former.mobile_former_26m(num_classes=4).eval()
    x = images(1, 3, 32, 32)
    torch.testing.assert_close(pickle.loads(pickle.dumps(model))(x), model(x))


def test_initialisation_is_the_published_one():
    torch.manual_seed(0)
    model = mobile_former.mobile_former_294m()
    conv = model.backbone.blocks[10].mobile.expand.conv.weight  # 1×1, 192 to 1152
    assert abs(conv.std().item() / math.sqrt(2 / 1152) - 1) < 0.02
    spread = model.classifier.logits.weight.std().item()
    assert abs(spread / 0.01 - 1) < 0.02
    assert model.classifier.logits.bias.abs().max() == 0
    assert abs(model.backbone.tokens.std().item() - 1) < 0.1
    assert (model.backbone.stem.norm.weight == 1).all()


def test_the_stochastic_depth_rate_increases_with_depth_and_is_that_of_all_four_branches():
    model = mobile_former.mobile_former_294m(drop_path=0.12)
    for number, block in enumerate(model.backbone.blocks, start=1):
        if isinstance(block, MobileFormerBlock):
            rates = {part.drop_path.rate for part in (block.to_former, block.former, block.mobile, block.to_mobile)}
            assert list(rates) == pytest.approx([0.12 * number / 12])


def test_the_published_layout_is_built_once_without_weights():
    published = MobileFormer.published("mobile_former_26m", num_classes=5)
    assert published is MobileFormer.published("mobile_former_26m", num_classes=5)
    assert published is not MobileFormer.published("mobile_former_26m")
    expected = mobile_former.mobile_former_26m(num_classes=5).state_dict()
    assert {name: t.shape for name, t in published.state_dict().items()} == {n: t.shape for n, t in expected.items()}
    assert all(tensor.is_meta for tensor in published.state_dict().values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": torch.zeros(1, 3, 31, 64)}, "31x64"),
        ({"images": torch.zeros(1, 1, 64, 64)}, r"\(1, 1, 64, 64\)"),
        ({"images": torch.zeros(3, 64, 64)}, r"\(3, 64, 64\)"),
        ({"images": torch.zeros(1, 3, 64, 64, dtype=torch.uint8)}, r"torch\.uint8.*floating-point"),
        (
            {"images": torch.zeros(2, 3, 64, 64), "padding_mask": torch.zeros(2, 64, 32, dtype=torch.bool)},
            r"\(2, 64, 64\)",
        ),
        ({"images": torch.zeros(2, 3, 64, 64), "padding_mask": torch.zeros(2, 64, 64)}, r"torch\.float32.*bool"),
    ],
)
def test_bad_images_are_named(options, message):
    with pytest.raises(mobile_former.InputError, match=message):
        mobile_former.mobile_former_26m().forward_features(**options)


def test_images_of_other_channels_work():
    assert mobile_former.mobile_former_26m(in_chans=1).eval()(torch.zeros(1, 1, 32, 32)).shape == (1, 1000)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_compiles_with_inductor_to_the_same_outputs():
    torch._dynamo.reset()
    model = mobile_former.mobile_former_26m(spatial_dynamic_relu=True).eval()
    x = images(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, fullgraph=True)(x), model(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("variant", "channels_last"), [("mobile_former_52m", True), ("mobile_former_26m", False)])
def test_maps_are_channels_last_on_a_cpu_unless_convolutions_are_grouped(variant, channels_last):
    maps, _ = mobile_former.create_model(variant).backbone(torch.randn(1, 3, 64, 96))
    for x in maps.values():
        assert x.is_contiguous(memory_format=torch.channels_last) == channels_last


def test_reset_classifier_gives_a_new_last_layer_that_deploy_cost_and_export_take():
    model = mobile_former.mobile_former_26m(num_classes=5).eval()
    before = mobile_former.cost(model, (64, 64))
    features = model.get_classifier().in_features
    model.reset_classifier(9)
    assert model.num_classes == model.get_classifier().out_features == 9
    after = mobile_former.cost(model, (64, 64))
    assert after.params - before.params == 4 * (features + 1)
    assert after.madds - before.madds == 4 * features
    x = images(2, 3, 64, 64)
    for classes, shape in ((9, (2, 9)), (0, (2, features))):
        model.reset_classifier(classes)
        expected = model(x)
        assert expected.shape == shape
        torch.testing.assert_close(mobile_former.deploy(model)(x), expected, atol=1e-4, rtol=1e-4)
    exported = torch.export.export(model, (x,)).module()
    torch.testing.assert_close(exported(x), expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(mobile_former.InputError, match="num_classes is -1"):
        model.reset_classifier(-1)


def test_reset_classifier_forgets_the_names_of_the_classes():
    model = mobile_former.mobile_former_26m(num_classes=2)
    model.usage = mobile_former.Usage(class_names=("cat", "dog"), image_size=96)
    model.reset_classifier(2)
    assert model.usage == mobile_former.Usage(image_size=96)
