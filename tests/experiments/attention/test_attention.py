"""``experiments.attention`` shows the attention that the models' forward passes used."""

import re

import cv2
import numpy as np
import pytest
import torch

import classification.module
import detection
import mobile_former
from detection.data.batch import pad
from detection.models.ablation import ablate as ablate_detector
from experiments.attention import (
    best_queries,
    box_steps,
    bridge_attention,
    draw_boxes,
    draw_bridge,
    load_predictor,
    look,
    recording,
)
from experiments.attention.__main__ import main
from mobile_former import InputError
from mobile_former.ablation import ablate
from mobile_former.bridge import FormerToMobile, MobileToFormer
from tests.conftest import run_module
from tests.experiments.conftest import DATA, OPTIONS


def randomised(model):
    """Give the bridges random weights, so that attention is far from uniform."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, MobileToFormer | FormerToMobile):
            for name in ("query", "key"):
                if hasattr(module, name):
                    weight = getattr(module, name).weight
                    weight.data = torch.randn(weight.shape, generator=generator)
    return model.eval()


def images(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def half_padded(height, width):
    mask = torch.zeros(2, height, width, dtype=torch.bool)
    mask[1, :, width // 2 :] = True
    return mask


@pytest.fixture(scope="module")
def detector():
    torch.manual_seed(0)
    return randomised(detection.create_detector("e2e_mf_26m", 3, **OPTIONS))


def by_name(blocks):
    return {block.name: block for block in blocks}


def test_every_bridge_is_recorded_in_order_with_the_shapes_of_its_maps():
    model = mobile_former.mobile_former_26m(num_classes=4).eval()
    blocks = bridge_attention(model, images(2, 3, 65, 96))
    assert [block.name for block in blocks] == [*(f"backbone{number}" for number in range(2, 10)), "classifier"]
    for block in blocks:
        for attention, stride in ((block.to_former, block.input_stride), (block.to_mobile, block.stride)):
            if attention is not None:
                assert attention.shape == (2, 2, 3, -(-65 // stride), -(-96 // stride)), block.name
    assert [block.name for block in blocks if block.to_mobile is None] == ["classifier"]
    assert [block.stride for block in blocks] == [4, 8, 8, 16, 16, 16, 32, 32, 32]
    assert [block.input_stride for block in blocks] == [4, 4, 8, 8, 16, 16, 16, 32, 32]


def test_the_blocks_of_a_detectors_head_follow_those_of_its_backbone(detector):
    blocks = bridge_attention(detector, images(1, 3, 64, 96))
    assert [block.name for block in blocks[8:]] == [f"detector{number}" for number in (1, 2)]
    assert by_name(blocks)["detector1"].to_former.shape == (1, 2, 50, 4, 6)
    assert blocks[-1].to_mobile is None  # its map is unused
    retinanet = detection.create_detector("retinanet_mf_26m", 3)
    assert [block.name for block in bridge_attention(retinanet, images(1, 3, 64, 64))] == [
        f"backbone{number}" for number in range(2, 10)
    ]


def test_attention_sums_to_one_and_is_zero_on_padding(detector):
    model = randomised(mobile_former.mobile_former_52m(num_classes=4))
    for each in (model, detector):
        for block in bridge_attention(each, images(2, 3, 64, 128), half_padded(64, 128)):
            torch.testing.assert_close(block.to_former.sum((3, 4)), torch.ones(block.to_former.shape[:3]))
            if block.to_mobile is not None:
                sums = block.to_mobile.sum(2)
                torch.testing.assert_close(sums, torch.ones_like(sums))
            filled = 64 // block.input_stride
            assert not block.to_former[1, ..., filled:].any(), block.name
            assert block.to_former[0, ..., filled:].any(), block.name


def test_padding_does_not_change_an_images_attention():
    model = randomised(mobile_former.mobile_former_26m(num_classes=4))
    batch = images(2, 3, 64, 128)
    padded = bridge_attention(model, batch, half_padded(64, 128))
    alone = bridge_attention(model, batch[1:, :, :, :64])
    for block, expected in zip(padded, alone, strict=True):
        width = expected.to_former.shape[-1]
        torch.testing.assert_close(block.to_former[1:, ..., :width], expected.to_former, atol=1e-4, rtol=1e-3)


def test_each_bridges_output_follows_from_the_recorded_attention(detector):
    """Including padding masks, positions and the focus on the queries' boxes."""
    calls = {}

    def keep(module, inputs, named, output):
        calls[module] = (inputs, named, output)

    bridges = [module for module in detector.modules() if isinstance(module, MobileToFormer | FormerToMobile)]
    hooks = [module.register_forward_hook(keep, with_kwargs=True) for module in bridges]
    blocks = by_name(bridge_attention(detector, images(2, 3, 64, 128), half_padded(64, 128)))
    for hook in hooks:
        hook.remove()
    named = {f"backbone{number}": block for number, block in enumerate(detector.backbone.blocks, start=1)}
    named |= {f"detector{number}": block for number, block in enumerate(detector.blocks, start=1)}
    focused = 0
    for name, attention in blocks.items():
        module = named[name].to_former
        (x, tokens, *_), options, (updated, _) = calls[module]
        focused += options.get("focus") is not None
        gathered = attention.to_former.flatten(3) @ x.flatten(2).unflatten(1, (2, -1)).transpose(2, 3)
        gathered = gathered.transpose(1, 2).flatten(2)
        if module.gate is not None:
            gathered = gathered * (2 * torch.nn.functional.hardsigmoid(module.gate(tokens)))
        assert torch.equal(module.norm(tokens + module.output(gathered)), updated), name
        if attention.to_mobile is not None:
            module = named[name].to_mobile
            (x, tokens, *_), _, updated = calls[module]
            value = module.value(tokens).unflatten(2, (2, -1)).transpose(1, 2)
            gathered = value.transpose(2, 3) @ attention.to_mobile.flatten(3)
            assert torch.equal(x + gathered.reshape(x.shape), updated), name
    assert focused == len(detector.blocks)


def test_the_first_blocks_attention_equals_numpys_at_every_position():
    model = randomised(mobile_former.mobile_former_26m(num_classes=4)).double()
    batch, mask = images(2, 3, 32, 64).double(), half_padded(32, 64)
    block = bridge_attention(model, batch, mask)[0]
    values = {}
    backbone = model.backbone
    hook = backbone.blocks[1].register_forward_hook(lambda _, inputs, output: values.update(x=inputs[0], out=output))
    middle = backbone.blocks[1].to_mobile.register_forward_pre_hook(lambda _, inputs: values.update(y=inputs[0]))
    with torch.no_grad():
        backbone(batch, mask)
    hook.remove()
    middle.remove()
    x, y, tokens = (value.detach().numpy() for value in (values["x"], values["y"], values["out"][1]))
    start = backbone.tokens.detach().numpy()
    query = backbone.blocks[1].to_former.query
    queries = start @ query.weight.detach().numpy().T + query.bias.detach().numpy()  # (3, C)
    key = backbone.blocks[1].to_mobile.key
    keys = tokens @ key.weight.detach().numpy().T + key.bias.detach().numpy()  # (2, 3, C)
    half = x.shape[1] // 2
    for image, head, token in np.ndindex(2, 2, 3):
        channels = slice(head * half, (head + 1) * half)
        logits = np.full(x.shape[2:], -np.inf)
        for row, column in np.ndindex(x.shape[2:]):
            if not mask[image, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].all():
                logits[row, column] = queries[token, channels] @ x[image, channels, row, column] / np.sqrt(half)
        weights = np.exp(logits - logits.max())
        np.testing.assert_allclose(block.to_former[image, head, token], weights / weights.sum(), atol=1e-10)
        weights = np.einsum("tc,chw->thw", keys[image][:, channels], y[image, channels]) / np.sqrt(half)
        weights = np.exp(weights - weights.max(0))
        np.testing.assert_allclose(block.to_mobile[image, head], weights / weights.sum(0), atol=1e-10)


def test_recording_changes_no_output_and_leaves_no_hooks():
    model = mobile_former.mobile_former_26m(num_classes=4).eval()
    batch = images(1, 3, 64, 64)
    expected = model(batch)
    with recording(model) as record:
        assert torch.equal(model(batch), expected)
        assert len(record.blocks) == 9
        model(batch)
        assert len(record.blocks) == 9  # of the last pass only
    assert record.outputs.shape == (1, 4)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_model_in_training_mode_is_run_in_evaluation_mode_and_stays_in_training_mode():
    model = mobile_former.mobile_former_26m(num_classes=4)
    model.backbone.stem.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    bridge_attention(model, images(2, 3, 32, 32))
    assert model.training
    assert not model.backbone.stem.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_error_for_a_model_without_a_recordable_bridge_names_the_remedy():
    model = mobile_former.mobile_former_26m(num_classes=4)
    for deployed in (model, detection.create_detector("e2e_mf_26m", 3)):
        with pytest.raises(InputError, match=r"inference form.*give the trained model"):
            bridge_attention(mobile_former.deploy(deployed), images(1, 3, 64, 64))
    with pytest.raises(InputError, match="Sequential has no bridge"):
        bridge_attention(torch.nn.Sequential(), images(1, 3, 64, 64))


@pytest.mark.slow
def test_a_compiled_model_is_refused():
    model = torch.compile(mobile_former.mobile_former_26m(num_classes=4))
    with pytest.raises(InputError, match=r"before torch\.compile"):
        bridge_attention(model, images(1, 3, 64, 64))


def test_a_bridge_that_an_ablation_removed_is_not_recorded():
    model = mobile_former.mobile_former_26m(num_classes=2)
    ablate(model, "no_bridge")
    with pytest.raises(InputError, match="MobileFormer has no bridge"):
        bridge_attention(model, torch.zeros(1, 3, 64, 64))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    detector = detection.create_detector("e2e_mf_26m", num_classes=3)
    ablate_detector(detector, "no_bridge")
    names = [block.name for block in bridge_attention(detector, torch.zeros(1, 3, 64, 64))]
    assert names == [f"detector{number}" for number in (1, 2)]


def test_no_more_tokens_are_drawn_than_there_are_colours():
    model = mobile_former.mobile_former_26m(num_classes=2)
    ablate(model, "tokens=12")
    blocks = bridge_attention(model, torch.rand(1, 3, 64, 64))
    assert blocks[0].to_former.shape[2] == 12
    figure = draw_bridge(np.zeros((64, 64, 3), np.uint8), blocks)
    texts = [text.get_text() for text in figure.texts]
    assert "token 10" in texts
    assert "token 11" not in texts
    assert "strongest (grey: other)" in texts


def test_a_baselines_checkpoint_is_refused(tmp_path):
    pytest.importorskip("transformers")
    module = classification.module.ClassificationModule(["a", "b"], name="transformers/mobilenet_v2_0.35")
    content = {
        "state_dict": module.state_dict(),
        "hyper_parameters": dict(module.hparams),
        "datamodule_hyper_parameters": DATA | {"image_size": 64, "crop_fraction": 0.9},
    }
    torch.save(content, tmp_path / "baseline.ckpt")
    with pytest.raises(InputError, match="no bridge"):
        load_predictor(tmp_path / "baseline.ckpt")


def test_the_last_steps_boxes_are_the_detections(detector):
    batch, mask = pad([torch.zeros(3, 64, 80, dtype=torch.uint8)])
    with torch.no_grad():
        outputs = detector(batch.float(), mask)
    steps = box_steps(detector, outputs)
    (found,) = detector.postprocess(outputs, [(64, 80)])
    assert len(steps) == len(detector.blocks)
    queries = best_queries(steps, ["a", "b", "c"], score_threshold=1.0)
    assert len(queries) == 1  # the best one, although its score is below the threshold
    (query,) = queries
    torch.testing.assert_close(steps[-1]["boxes"][0, query] * torch.tensor([80, 64, 80, 64]), found["boxes"][0])
    assert steps[-1]["scores"][0, query] == found["scores"][0]
    scores = steps[-1]["scores"][0]
    order = list(best_queries(steps, ["a", "b", "c"], score_threshold=0, most=50))
    assert scores[order].tolist() == sorted(scores.tolist(), reverse=True)


@pytest.mark.parametrize("size", [(64, 96), (40, 400), (300, 33)])
def test_figures_of_any_shape_are_drawn(detector, size):
    image = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    batch, mask = pad([torch.from_numpy(image).permute(2, 0, 1)])
    with recording(detector) as record, torch.no_grad():
        detector(batch / 255, mask)
    steps = box_steps(detector, record.outputs)
    queries = best_queries(steps, ["猫", "$x_", "c"], score_threshold=0)
    some = [record.blocks[0], record.blocks[-2], record.blocks[-1]]
    figure = draw_bridge(image, some, queries=queries, title="猫 $x_{ " * 30, head=2)
    figure.canvas.draw()
    # Each section: a panel per token and a scale, two panels and a scale of Former→Mobile. And the image.
    assert len(figure.axes) == (3 + 1 + 3) + (6 + 1 + 3) + (6 + 1) + 1
    figure = draw_boxes(image, steps, ["猫", "$x_", "c"], score_threshold=0, title="boxes")
    figure.canvas.draw()
    assert len(figure.axes) == len(steps) + 2


def test_an_unknown_head_and_an_empty_list_of_blocks_are_errors(detector):
    image = np.zeros((64, 64, 3), np.uint8)
    blocks = bridge_attention(detector, images(1, 3, 64, 64))
    with pytest.raises(InputError, match="heads 1 to 2"):
        draw_bridge(image, blocks, head=3)
    with pytest.raises(InputError, match="no blocks"):
        draw_bridge(image, [])


@pytest.mark.parametrize("name", ["classifier", "detector", "retinanet"])
def test_a_look_has_the_predictions_of_the_predict_command(checkpoints, name, tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "image.png"), image[..., ::-1])
    predictor = load_predictor(checkpoints[name])
    result = look(predictor, image)
    if name == "classifier":
        (expected,) = classification.predict.predict(predictor, [tmp_path / "image.png"])
        assert [each["class"] for each in result.answer] == [each["class"] for each in expected["top_k"]]
        assert result.image.shape == (64, 64, 3)
    else:
        (expected,) = detection.predict.predict(predictor, [tmp_path / "image.png"], score_threshold=0)
        assert result.answer == expected["detections"]
        score = result.answer[3]["score"]
        assert result.above(score) == [each for each in result.answer if each["score"] >= score]
        assert result.told(0).endswith(f"and {len(result.answer) - 3} more")
        assert result.told(1.0) == "nothing found"
        assert result.image.shape == (64, 85, 3)
    assert len(result.steps) == (2 if name == "detector" else 0)
    assert result.seconds > 0


def test_the_command_writes_the_pictures_prints_their_names_and_continues_after_a_bad_file(checkpoints, tmp_path):
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    image = np.random.default_rng(0).integers(0, 255, (70, 100, 3), dtype=np.uint8)
    for name in ("a.jpg", "more/a.png"):
        cv2.imwrite(str(folder / name), image)
    (folder / "bad.jpg").write_text("no image")
    arguments = ("--ckpt", str(checkpoints["detector"]), "--blocks", "backbone2", "detector2", "--head", "1")
    result = run_module("experiments.attention", "photos", *arguments, cwd=tmp_path)
    assert result.returncode == 1
    assert "bad.jpg" in result.stderr
    assert "Traceback" not in result.stderr
    assert "Glyph" not in result.stderr
    names = ["a-bridge.png", "a-boxes.png", "a-2-bridge.png", "a-2-boxes.png"]
    for name in names:
        picture = cv2.imread(str(tmp_path / "runs" / "attention" / name))
        assert picture is not None
        assert picture.std() > 5
        assert f"written: runs/attention/{name}" in result.stdout


def test_wrong_options_of_the_command_are_errors(checkpoints, tmp_path, monkeypatch):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((40, 40, 3), np.uint8))
    monkeypatch.chdir(tmp_path)
    for arguments, message in (
        (("--blocks", "backbone1"), "the model has no block 'backbone1': choose from backbone2, backbone3"),
        (("--head", "3"), "head is 3: the bridge has heads 1 to 2"),
        (("--score_threshold", "30"), "--score_threshold is 30"),
    ):
        monkeypatch.setattr(
            "sys.argv", ["attention", "a.png", "--ckpt_path", str(checkpoints["classifier"]), *arguments]
        )
        with pytest.raises(InputError, match=re.escape(message)):
            main()
