"""Mobile blocks in training: BatchNorm, dynamic ReLU and convolution as one operation, against separate modules."""

import copy

import pytest
import torch
from torch import nn

from mobile_former.layers import activated_conv
from mobile_former.layers.checkpointing import checkpoint_gradients
from mobile_former.mobile import DownsamplingMobile, Mobile
from mobile_former.model import MobileFormer
from tests.conftest import kept_for_backward

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
BLOCKS = {"same": (Mobile, (16, 16, 3, 32), (70, 80)), "down": (DownsamplingMobile, (16, 24, (6, 4), 32), (35, 40))}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def calls(monkeypatch) -> list:
    """List that gets an entry for each map of which only the input of BatchNorm is stored."""
    made, apply = [], activated_conv._ActivatedConv.apply

    def counted(*inputs):
        made.append(inputs[0].shape)
        return apply(*inputs)

    monkeypatch.setattr(activated_conv._ActivatedConv, "apply", counted)
    return made


def _block(kind):
    """Return a block in float64 with random parameters, and the size of its output map."""
    create, arguments, size = BLOCKS[kind]
    block = create(*arguments).double()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return block, size


def _inputs(size, *, spatial, memory_format=torch.contiguous_format):
    x = torch.randn(2, 16, 70, 80).double().contiguous(memory_format=memory_format)
    tokens, mixing = torch.randn(2, 4, 32).double(), torch.randn(2, 4, *size).double().softmax(1)
    return [tensor.requires_grad_() for tensor in ((x, tokens, mixing) if spatial else (x, tokens))]


def _separate(block):
    """Return a copy of a block whose modules run one after the other, because one of them has a hook."""
    block = copy.deepcopy(block)
    for module in block.modules():
        module.register_forward_hook(lambda *_: None)
    return block


def _gradients(block, inputs, *others):
    out = block(*inputs, *([None] * (3 - len(inputs))), *others)
    return out, torch.autograd.grad(out.square().mean() + out.mean(), [*inputs, *block.parameters()])


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("padded", [False, True], ids=["unpadded", "padded"])
@pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("spatial", [False, True], ids=["shared", "spatial"])
@pytest.mark.parametrize("kind", BLOCKS)
def test_outputs_gradients_and_statistics_are_those_of_the_modules(
    kind, spatial, memory_format, padded, training, calls
):
    block, size = _block(kind)
    block.train(training)
    separate, inputs = _separate(block), _inputs(size, spatial=spatial, memory_format=memory_format)
    masks = [torch.zeros(2, 1, *each, dtype=torch.bool) for each in ((70, 80), size)]
    for mask in masks:
        mask[1, :, -3:] = True
    masks = (masks if kind == "down" else masks[:1]) if padded else []
    found = _gradients(block, inputs, *masks)
    assert len(calls) == 2
    expected = _gradients(separate, inputs, *masks)
    assert len(calls) == 2
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close([*block.buffers()], [*separate.buffers()])


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("spatial", [False, True], ids=["shared", "spatial"])
def test_gradients_of_gradients_are_those_of_the_modules(spatial, training, calls):
    block, size = _block("same")
    block.train(training)
    inputs, found = _inputs(size, spatial=spatial), []
    first = [inputs[0], *inputs[2:]]  # PyTorch has no second derivative of the hard sigmoid, by which tokens are used
    for each in (block, _separate(block)):
        out = each(*inputs)
        gradients = torch.autograd.grad(out.square().mean(), first, create_graph=True)
        norm = sum(gradient.square().sum() for gradient in gradients)
        found.append(torch.autograd.grad(norm, [*inputs, *each.parameters()], allow_unused=True))
    assert len(calls) == 2
    torch.testing.assert_close(*found, rtol=1e-7, atol=1e-12)


def test_a_block_stores_a_third_of_its_hidden_maps():
    block, tokens = Mobile(16, 16, 6, 32), torch.randn(2, 4, 32)
    x = torch.randn(2, 16, 70, 80).requires_grad_()
    hidden = 6 * x.nbytes
    assert kept_for_backward(_separate(block), x, tokens) > 6 * hidden
    assert kept_for_backward(block, x, tokens) < 2.6 * hidden  # two hidden maps, and small ones


def test_other_modules_and_other_numbers_of_bits_run_separately(calls):
    inputs = [tensor.detach().float() for tensor in _inputs((70, 80), spatial=False)]
    block = Mobile(16, 16, 3, 32)
    with torch.no_grad():
        block(*inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        block(*inputs).sum().backward()
    torch.compile(block, backend="aot_eager")(*inputs).sum().backward()
    for name, module in {"expand_relu": _ReLU(), "depthwise": nn.Sequential(block.depthwise)}.items():
        changed = copy.deepcopy(block)
        setattr(changed, name, module)
        changed(*inputs).sum().backward()
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(block)).eval()
    synchronised(*inputs).sum().backward()
    grouped = Mobile(16, 16, 3, 32, groups=4)
    grouped(*inputs).sum().backward()
    assert not calls
    block(*inputs).sum().backward()
    assert len(calls) == 2


class _ReLU(nn.Module):
    def forward(self, x, tokens, mixing=None):
        return x.relu()


def test_a_hook_that_replaces_an_output_takes_effect(calls):
    inputs, block = _inputs((70, 80), spatial=False), _block("same")[0]
    block.depthwise.norm.register_forward_hook(lambda module, inputs, output: 0 * output)
    expected = block.project.norm.bias[:, None, None].expand(16, 70, 80)
    torch.testing.assert_close(block(*inputs) - inputs[0], expected.expand(2, -1, -1, -1))
    assert not calls


def test_frozen_norms_and_convolutions_get_no_gradient(calls):
    block, inputs = _block("same")[0], _inputs((70, 80), spatial=False)
    separate = _separate(block)
    for each in (block, separate):
        each.depthwise.requires_grad_(False)
        each.depthwise.norm.eval()
        each(*inputs).square().sum().backward()
    for parameter, expected in zip(block.parameters(), separate.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad)
    assert block.depthwise.conv.weight.grad is None
    assert len(calls) == 2


def test_a_step_with_gradient_checkpointing_is_the_same(calls, monkeypatch):
    monkeypatch.setattr(activated_conv, "LARGE", 0)
    model = MobileFormer("mobile_former_52m", num_classes=3)
    models = [model, copy.deepcopy(model)]
    checkpoint_gradients(models[1])
    images = torch.randn(4, 3, 64, 64)
    for each in models:
        each(images).square().sum().backward()
    assert calls
    for parameter, expected in zip(*(each.parameters() for each in models), strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad)
    torch.testing.assert_close(*([*each.buffers()] for each in models))
