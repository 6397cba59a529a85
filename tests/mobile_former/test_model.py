import math
import pickle
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

import mobile_former
from mobile_former.block import MobileFormerBlock
from mobile_former.layers.dynamic_relu import DynamicReLU, larger_product
from mobile_former.layers.stochastic_depth import StochasticDepth
from tests.conftest import assert_same_step, kept_for_backward

MODELS = mobile_former.list_models()


def images(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_models_are_listed_by_size():
    assert MODELS[0] == "mobile_former_26m"
    assert MODELS[-1] == "mobile_former_508m"
    sizes = [int(name.rsplit("_", 1)[1][:-1]) for name in MODELS]
    assert sizes == sorted(sizes)
    assert len(sizes) == 7


# mobile-former's published sizes: parameters for 1000 classes, multiply-adds of one 224×224 image.
COSTS = {
    "mobile_former_26m": (3_232_788, 23.55),
    "mobile_former_52m": (3_469_092, 49.29),
    "mobile_former_96m": (4_585_252, 92.02),
    "mobile_former_151m": (7_595_828, 146.25),
    "mobile_former_214m": (9_425_920, 208.37),
    "mobile_former_294m": (11_422_648, 286.73),
    "mobile_former_508m": (13_976_976, 498.47),
}


@pytest.mark.parametrize("name", MODELS)
def test_cost_is_exactly_the_published_one(name):
    model = getattr(mobile_former, name)()
    cost = mobile_former.cost(model)
    params, madds = COSTS[name]
    assert cost.params == params == sum(p.numel() for p in model.parameters())
    assert round(cost.madds / 1e6, 2) == madds


def test_cost_leaves_the_model_as_it_was():
    model = mobile_former.mobile_former_26m()
    mobile_former.cost(model, image_size=(96, 64))
    assert model.training
    assert all(p.requires_grad and p.device.type == "cpu" for p in model.parameters())


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


def test_one_block_alone_can_be_computed_by_hand():
    """The spatially aware block against a computation position by position, head by head, in plain loops."""
    torch.manual_seed(0)
    spec = mobile_former.variants.BlockSpec("same", 8, (2,), 1)
    block = MobileFormerBlock(spec, 8, 16, spatial_dynamic_relu=True).double().eval()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x, tokens = images(1, 8, 3, 2).double(), images(1, 5, 16).double()
    with torch.no_grad():
        actual_x, actual_tokens = block(x, tokens)
        positions = x[0].flatten(1).T  # (6, 8)
        bridge = block.to_former
        query = bridge.query(tokens)[0]
        gate = 2 * ((bridge.gate(tokens)[0] + 3).clamp(0, 6) / 6)
        gathered = torch.zeros(5, 8, dtype=torch.double)
        logits = torch.zeros(2, 5, 6, dtype=torch.double)
        for head, channels in enumerate((slice(0, 4), slice(4, 8))):
            for token in range(5):
                for position in range(6):
                    logits[head, token, position] = query[token, channels] @ positions[position, channels] / 2
                weights = logits[head, token].exp() / logits[head, token].exp().sum()
                gathered[token, channels] = (weights[:, None] * positions[:, channels]).sum(0)
        new_tokens = bridge.norm(tokens[0] + bridge.output(gathered * gate))
        former = block.former
        attended = torch.zeros(5, 16, dtype=torch.double)
        for head in range(4):
            channels = slice(4 * head, 4 * head + 4)
            scores = former.query(new_tokens)[:, channels] @ new_tokens[:, channels].T / 2
            attended[:, channels] = scores.softmax(1) @ new_tokens[:, channels]
        new_tokens = former.attention_norm(new_tokens + former.output(attended))
        new_tokens = former.ffn_norm(new_tokens + former.ffn[2](F.gelu(former.ffn[0](new_tokens))))
        torch.testing.assert_close(actual_tokens[0], new_tokens)

        mixing = logits.mean(0).softmax(0)  # (tokens, positions)

        def dynamic(module, y):
            theta = (module.slopes(module.reduce(new_tokens).relu()) + 3).clamp(0, 6) / 6  # (5, 2C)
            out = torch.zeros_like(y)
            for position in range(6):
                mixed = (mixing[:, position, None] * theta).sum(0)
                first, second = mixed.chunk(2)
                row, column = divmod(position, 2)
                value = y[0, :, row, column]
                out[0, :, row, column] = torch.maximum((2 * (first - 0.5) + 1) * value, 2 * (second - 0.5) * value)
            return out

        mobile = block.mobile
        hidden = dynamic(mobile.expand_relu, mobile.expand(x))
        hidden = dynamic(mobile.depthwise_relu, mobile.depthwise(hidden))
        y = x + mobile.project(hidden)
        key, value = block.to_mobile.key(new_tokens), block.to_mobile.value(new_tokens)
        expected = y.clone()
        for position in range(6):
            row, column = divmod(position, 2)
            for channels in (slice(0, 4), slice(4, 8)):
                weights = (key[:, channels] @ y[0, channels, row, column] / 2).softmax(0)
                expected[0, channels, row, column] += weights @ value[:, channels]
        torch.testing.assert_close(actual_x, expected)


def test_spatial_dynamic_relu_equals_the_shared_one_where_all_weight_lies_on_the_first_token():
    relu = DynamicReLU(6, 16)
    torch.nn.init.normal_(relu.slopes.weight)
    x, tokens = images(2, 6, 4, 3), images(2, 3, 16)
    mixing = torch.zeros(2, 3, 4, 3)
    mixing[:, 0] = 1
    torch.testing.assert_close(relu(x, tokens), relu(x, tokens, mixing))


@pytest.mark.parametrize("shape", [(2, 3, 1, 1), (2, 3, 4, 5)], ids=["shared", "spatial"])
def test_dynamic_relu_has_the_gradients_of_the_larger_of_two_products(shape):
    torch.manual_seed(0)
    inputs = [torch.randn(size, dtype=torch.float64, requires_grad=True) for size in ((2, 3, 4, 5), shape, shape)]
    torch.autograd.gradcheck(larger_product, inputs)
    torch.autograd.gradgradcheck(larger_product, inputs)
    x, slope1, slope2 = inputs
    expected = torch.maximum(slope1 * x, slope2 * x)
    found = larger_product(*inputs)
    assert torch.equal(found, expected)
    weights = torch.randn_like(expected)
    gradients = [torch.autograd.grad(each, inputs, weights) for each in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_dynamic_relu_gives_each_sample_its_gradients_by_vmap():
    torch.manual_seed(0)
    relu, x, tokens = DynamicReLU(6, 16), images(3, 6, 4, 5), images(3, 2, 16)
    parameters = dict(relu.named_parameters())

    def loss(parameters, x, tokens):
        return torch.func.functional_call(relu, parameters, (x[None], tokens[None])).square().sum()

    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(parameters, x, tokens)
    for sample in range(3):
        relu.zero_grad()
        loss(parameters, x[sample], tokens[sample]).backward()
        for name, parameter in parameters.items():
            torch.testing.assert_close(found[name][sample], parameter.grad)


def test_dynamic_relu_keeps_no_map_but_its_own_for_the_gradients():
    relu, x, tokens = DynamicReLU(64, 16), images(2, 64, 32, 32).requires_grad_(), images(2, 2, 16)
    assert kept_for_backward(relu, x, tokens) < 1.1 * x.nbytes


def test_dynamic_relu_trains_in_bfloat16():
    relu, x, tokens = DynamicReLU(6, 16), images(2, 6, 4, 5).requires_grad_(), images(2, 2, 16)
    exact = torch.autograd.grad(relu(x, tokens).square().sum(), [x, *relu.parameters()])
    for half in (x, x.to(torch.bfloat16)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = relu(half, tokens).square().sum()
        found = torch.autograd.grad(loss, [x, *relu.parameters()])
        for gradient, expected in zip(found, exact, strict=True):
            torch.testing.assert_close(gradient, expected, rtol=0.05, atol=0.05 * float(expected.abs().max()))


@pytest.mark.parametrize("spatial", [False, True])
@pytest.mark.parametrize("name", ["mobile_former_26m", "mobile_former_151m"])
@pytest.mark.parametrize("size", [(64, 64), (45, 71)])
def test_what_an_image_gets_does_not_depend_on_its_padding(name, size, spatial):
    torch.manual_seed(0)
    model = mobile_former.create_model(name, spatial_dynamic_relu=spatial).double().eval()
    for parameter in model.parameters():  # far from the near-zero initialisation, where little depends on anything
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
def test_compiles_without_graph_breaks_and_gives_the_same(name, spatial):
    torch._dynamo.reset()
    model = mobile_former.create_model(name, spatial_dynamic_relu=spatial).eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = images(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)


def test_a_compiled_model_trains():
    torch._dynamo.reset()
    model = mobile_former.mobile_former_26m(num_classes=4, drop_path=0.1)
    mobile_former.checkpoint_gradients(model)  # of which a compiled model takes no notice
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    compiled(images(4, 3, 32, 32)).square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert {int(value) for name, value in model.named_buffers() if name.endswith("num_batches_tracked")} == {1}


def test_exports_to_a_graph_with_the_same_outputs():
    model = mobile_former.mobile_former_26m().eval()
    x = images(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), model(x))


def test_exports_with_batch_height_and_width_left_open():
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


def test_every_parameter_gets_a_gradient():
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


def test_stochastic_depth_drops_whole_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    layer = StochasticDepth(0.25)
    out = layer(torch.ones(4000, 2, 3))
    per_sample = out.flatten(1)
    assert (per_sample == per_sample[:, :1]).all()
    assert sorted(set(per_sample[:, 0].tolist())) == pytest.approx([0, 1 / 0.75])
    assert abs(out.mean().item() - 1) < 0.03
    assert (layer.eval()(torch.ones(5, 2)) == 1).all()


def test_stochastic_depth_rises_with_the_block_and_reaches_all_four_branches():
    model = mobile_former.mobile_former_294m(drop_path=0.12)
    for number, block in enumerate(model.backbone.blocks, start=1):
        if isinstance(block, MobileFormerBlock):
            rates = {part.drop_path.rate for part in (block.to_former, block.former, block.mobile, block.to_mobile)}
            assert list(rates) == pytest.approx([0.12 * number / 12])


# Gradient checkpointing


@pytest.mark.parametrize("spatial", [False, True])
@pytest.mark.parametrize("name", ["mobile_former_26m", "mobile_former_151m"])
def test_a_step_with_checkpointed_gradients_is_the_same_with_all_its_random_draws(name, spatial):
    torch.manual_seed(0)
    model = mobile_former.create_model(
        name, num_classes=4, dropout=0.3, drop_path=0.3, spatial_dynamic_relu=spatial
    ).double()
    x = images(4, 3, 45, 71).double()
    mask = torch.zeros(4, 45, 71, dtype=torch.bool)
    mask[1, 30:] = mask[2, :, 40:] = True

    def loss_of(model):
        maps, tokens = model.forward_features(x, mask)
        return model(x).square().mean() + sum(m.square().mean() for m in maps.values()) + tokens.square().mean()

    assert_same_step(model, loss_of)


def test_a_step_with_checkpointed_gradients_is_the_same_under_autocast_and_with_frozen_norms():
    torch.manual_seed(0)
    model = mobile_former.mobile_former_52m(num_classes=4, drop_path=0.2)
    for module in list(model.modules())[::3]:
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()

    def loss_of(model):
        with torch.autocast("cpu", torch.bfloat16):
            return model(images(4, 3, 64, 64)).float().square().mean()

    assert_same_step(model, loss_of)


def test_checkpointed_gradients_leave_little_to_keep_and_nothing_else_changed():
    model = mobile_former.mobile_former_508m(num_classes=10)
    x = images(4, 3, 224, 224)
    whole = kept_for_backward(model.to("meta"), x.to("meta"))
    mobile_former.checkpoint_gradients(model)
    assert kept_for_backward(model, x.to("meta")) < 0.12 * whole
    model = mobile_former.mobile_former_26m(num_classes=10).eval()
    with torch.no_grad():
        expected = model(x)
        mobile_former.checkpoint_gradients(model)
        assert torch.equal(model(x), expected)
        assert torch.equal(pickle.loads(pickle.dumps(model))(x), expected)
        torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), expected)
    with pytest.raises(mobile_former.InputError, match="Linear has none of the blocks"):
        mobile_former.checkpoint_gradients(torch.nn.Linear(3, 3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mobile_former.create_model("mobile_former_295m"), "mobile_former_294m"),
        (lambda: mobile_former.create_model("mobile_former_26m", num_classes=0), "at least 1"),
        (lambda: mobile_former.create_model("mobile_former_26m", dropout=1.0), "below 1"),
        (lambda: mobile_former.create_model("mobile_former_26m", drop_path=-0.1), "below 1"),
        (lambda: mobile_former.create_model("mobile_former_26m", in_chans=0), "at least 1"),
        (lambda: mobile_former.mobile_former_26m()(torch.zeros(1, 3, 31, 64)), "31x64"),
        (lambda: mobile_former.mobile_former_26m()(torch.zeros(1, 1, 64, 64)), r"\(1, 1, 64, 64\)"),
        (lambda: mobile_former.mobile_former_26m()(torch.zeros(3, 64, 64)), r"\(3, 64, 64\)"),
        (
            lambda: mobile_former.mobile_former_26m().forward_features(
                torch.zeros(2, 3, 64, 64), torch.zeros(2, 64, 32, dtype=torch.bool)
            ),
            r"\(2, 64, 64\)",
        ),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(mobile_former.InputError, match=message):
        call()


def test_images_of_other_channels_work():
    assert mobile_former.mobile_former_26m(in_chans=1).eval()(torch.zeros(1, 1, 32, 32)).shape == (1, 1000)


def test_the_backbone_needs_neither_lightning_nor_a_data_library():
    code = (
        "import sys, mobile_former; mobile_former.mobile_former_26m();"
        "heavy = {'pytorch_lightning', 'albumentations', 'cv2', 'torchmetrics', 'sklearn', 'torchvision'};"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_compiles_with_inductor_and_gives_the_same():
    torch._dynamo.reset()
    model = mobile_former.mobile_former_26m(spatial_dynamic_relu=True).eval()
    x = images(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, fullgraph=True)(x), model(x), rtol=1e-3, atol=1e-4)
