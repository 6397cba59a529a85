"""Ablations of the backbone: the ablated part is gone, and everything else works."""

import pytest
import torch

import mobile_former
from mobile_former import InputError
from mobile_former.ablation import ProjectedFormerToMobile, ProjectedMobileToFormer, StaticReLU, ablate
from mobile_former.bridge import FormerToMobile, MobileToFormer
from mobile_former.former import Former
from mobile_former.layers.dynamic_relu import DynamicReLU
from tests.conftest import assert_same_step

NAMES = ["no_bridge", "relu", "projected_bridge", "no_ffn", "tokens=1", "tokens=6", "relu,no_ffn"]


def ablated(names, **options):
    torch.manual_seed(0)
    model = mobile_former.create_model("mobile_former_26m", num_classes=5, **options)
    ablate(model, names)
    return model


def images(batch=2):
    return torch.randn(batch, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def of_kind(model, kind):
    return [part for part in model.modules() if type(part) is kind]


@pytest.mark.parametrize("names", NAMES)
def test_every_trained_parameter_has_a_gradient(names):
    model = ablated(names)
    model(images()).square().sum().backward()
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]


@pytest.mark.parametrize("names", NAMES)
def test_the_inference_form_computes_the_same(names):
    model = ablated(names).double()
    for part in model.modules():
        if isinstance(part, torch.nn.BatchNorm2d | torch.nn.BatchNorm1d):
            torch.nn.init.uniform_(part.running_mean, -0.5, 0.5)
            torch.nn.init.uniform_(part.running_var, 0.5, 2)
    model.eval()
    fast = mobile_former.deploy(model)
    x = images().double()
    torch.testing.assert_close(fast(x), model(x), rtol=1e-9, atol=1e-12)
    assert not of_kind(fast, torch.nn.BatchNorm2d)


@pytest.mark.parametrize("names", NAMES)
def test_weights_fit_only_a_model_with_the_same_ablation(names, tmp_path):
    model = ablated(names).eval()
    torch.save({"state_dict": model.state_dict()}, tmp_path / "ablated.pth")
    torch.save({"state_dict": mobile_former.mobile_former_26m(num_classes=5).state_dict()}, tmp_path / "published.pth")
    twin = ablated(names)
    torch.nn.init.ones_(twin.classifier.logits.weight)
    mobile_former.load_weights(twin, tmp_path / "ablated.pth")
    assert torch.equal(twin.eval()(images()), model(images()))
    with pytest.raises(InputError, match="holds the published mobile_former_26m, not an ablated one"):
        mobile_former.load_weights(twin, tmp_path / "published.pth")


def test_published_models_do_not_change():
    published = mobile_former.mobile_former_26m()
    names = list(published.state_dict())
    ablated("no_bridge")
    assert list(mobile_former.mobile_former_26m().state_dict()) == names


def test_without_bridge_maps_do_not_depend_on_tokens():
    model = ablated("no_bridge").eval()
    for kind in (MobileToFormer, FormerToMobile, Former, DynamicReLU):
        assert not of_kind(model, kind)
    x = images()
    before, maps = model(x), model.forward_features(x)[0]
    torch.nn.init.normal_(model.backbone.tokens, std=9)
    assert torch.equal(model(x), before)
    for stride, after in model.forward_features(x)[0].items():
        assert torch.equal(after, maps[stride])
    assert not model.forward_features(x)[1].any()


@pytest.mark.parametrize("spatial", [False, True])
def test_relu_replaces_dynamic_relu_in_all_blocks(spatial):
    model = ablated("relu", spatial_dynamic_relu=spatial)
    assert not of_kind(model, DynamicReLU)
    blocks = [block for block in model.backbone.blocks if hasattr(block, "former")]
    relus = of_kind(model, StaticReLU)
    assert len(relus) == 2 * len(blocks)
    assert not any(block.spatial_dynamic_relu for block in blocks)
    x = torch.randn(1, 4, 3, 3)
    assert torch.equal(relus[0](x, None), x.relu())


def test_a_projected_bridge_with_identities_is_the_published_one():
    torch.manual_seed(0)
    published = mobile_former.create_model("mobile_former_26m", num_classes=5).eval()
    model = ablated("projected_bridge").eval()
    assert not of_kind(model, MobileToFormer)
    assert not of_kind(model, FormerToMobile)
    x = images()
    model.load_state_dict(published.state_dict(), strict=False)
    assert not torch.equal(model(x), published(x))
    with torch.no_grad():
        for part in (*of_kind(model, ProjectedMobileToFormer), *of_kind(model, ProjectedFormerToMobile)):
            for layer in (getattr(part, name) for name in ("query", "key", "value", "project") if hasattr(part, name)):
                if isinstance(layer, torch.nn.Conv2d):
                    torch.nn.init.dirac_(layer.weight)
    torch.testing.assert_close(model(x), published(x))
    more = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in published.parameters())
    to_former = [part.output.in_features for part in of_kind(published, MobileToFormer)]
    to_mobile = [part.key.out_features for part in of_kind(published, FormerToMobile)]
    assert more == sum(2 * (width * width + width) for width in to_former + to_mobile)


def test_no_ffn_removes_exactly_the_parameters_of_the_feed_forward_networks():
    published = mobile_former.create_model("mobile_former_26m", num_classes=5)
    formers = of_kind(published, Former)
    own = sum(p.numel() for former in formers for part in (former.ffn, former.ffn_norm) for p in part.parameters())
    counts = [mobile_former.cost(model, (64, 64)).params for model in (published, ablated("no_ffn"))]
    assert counts[0] - counts[1] == own
    assert own > 0
    assert set(ablated("no_ffn").state_dict()) < set(published.state_dict())


def test_the_model_has_the_requested_number_of_tokens():
    for count in (1, 5):
        _, tokens = ablated(f"tokens={count}").forward_features(images())
        assert tokens.shape == (2, count, 128)


def test_gradient_checkpointing_works_with_ablations():
    model = ablated("projected_bridge,no_ffn", drop_path=0.2).double().train()
    assert_same_step(model, lambda each: each(images().double()).square().sum())


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("no_bridg", "no ablation is named 'no_bridg': did you mean 'no_bridge'"),
        ("tokens", "ablation 'tokens': give a number, as tokens="),
        ("tokens=0", "give a number of tokens, 1 or more"),
        ("relu=1", "ablation 'relu=1': it takes no value"),
        ("no_bridge,projected_bridge", "'projected_bridge' removes nothing from MobileFormer after no_bridge"),
        ("", "no ablation is named ''"),
    ],
)
def test_an_invalid_ablation_is_an_error(names, message):
    with pytest.raises(InputError, match=message):
        ablated(names)
