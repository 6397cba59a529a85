import gc
import json
import re
import statistics
import sys
from pathlib import Path

import cv2
import pytest
import torch

import mobile_former
from experiments.benchmark import __main__ as benchmark
from experiments.benchmark.candidates import create_earlier, find_peers, model_candidates
from experiments.benchmark.figures import draw_latency, draw_training
from experiments.benchmark.machine import cpu_name, describe_machine
from experiments.benchmark.onnx_graph import OnnxGraph
from experiments.benchmark.tables import training_table
from experiments.benchmark.training_speed import saved_bytes
from experiments.interleaved import interleave, paired, quartiles
from mobile_former.errors import InputError
from tests.conftest import ROOT, write_onnx_peer

PEER_MADDS = 16 * 16 * 8 * 3 * 9 + 8 * 10  # at 32x32 pixels: its convolution and its linear


@pytest.fixture
def peer(tmp_path):
    return write_onnx_peer(tmp_path / "peers" / "small.onnx", side=32)


@pytest.fixture
def run(monkeypatch):
    """Run the benchmark's main in this process."""

    def main(*arguments):
        monkeypatch.setattr(sys, "argv", ["experiments.benchmark", *map(str, arguments)])
        benchmark.main()

    threads = torch.get_num_threads()
    yield main
    torch.set_num_threads(threads)


class FakeClock:
    """A clock that advances when a fake candidate runs."""

    def __init__(self):
        self.seconds = 0.0
        self.order = []

    def candidate(self, label, *durations):
        left = list(durations)

        def run():
            self.order.append(label)
            assert not gc.isenabled()
            self.seconds += left.pop(0) if len(left) > 1 else left[0]

        return run

    def __call__(self):
        return self.seconds


def test_each_round_runs_every_candidate_in_a_new_random_order():
    clock = FakeClock()
    fakes = {label: clock.candidate(label, number) for number, label in enumerate("abcd", start=1)}
    counts = []
    seconds = interleave(fakes, rounds=20, warmup=2, clock=clock, after_round=lambda: counts.append(len(clock.order)))
    rounds = ["".join(clock.order[start : start + 4]) for start in range(0, len(clock.order), 4)]
    assert len(rounds) == 22
    assert all(sorted(each) == list("abcd") for each in rounds)
    assert len(set(rounds)) > 10
    assert counts == [4 * (number + 1) for number in range(22)]
    assert seconds == {label: [float(number)] * 20 for number, label in enumerate("abcd", start=1)}
    again = FakeClock()
    interleave({label: again.candidate(label, 1) for label in "abcd"}, rounds=20, warmup=2, clock=again)
    assert again.order == clock.order


def test_warm_up_is_left_out_and_the_median_of_repeated_runs_counts():
    clock = FakeClock()
    fake = clock.candidate("a", 100, 100, 100, 7, 1, 2, 5)  # one round of warm-up, then two timed rounds
    assert interleave({"a": fake}, rounds=2, warmup=1, repeat=3, clock=clock) == {"a": [2, 5]}


def test_garbage_collection_is_enabled_after_a_candidate_has_failed():
    def fail():
        raise RuntimeError("out of order")

    with pytest.raises(RuntimeError, match="out of order"):
        interleave({"a": fail}, rounds=1, warmup=0, clock=lambda: 0.0)
    assert gc.isenabled()


def test_ratios_pair_the_times_of_the_same_round():
    assert paired([2.0, 30.0, 400.0], [1.0, 10.0, 100.0]) == [2.0, 3.0, 4.0]
    assert quartiles([3.0, 1.0, 2.0, 5.0, 4.0]) == [2.0, 3.0, 4.0]
    assert quartiles([7.0]) == [7.0, 7.0, 7.0]


def test_latency_writes_ratios_a_table_and_a_picture_of_models_and_a_peer(run, tmp_path, peer, capsys):
    arguments = ["--models", "mobile_former_26m", "e2e_mf_26m", "--forms", "deployed", "eager", "--image_size", "32"]
    arguments += ["--batch_sizes", "1", "2", "--rounds", "3", "--warmup", "1", "--peers", str(peer.parent)]
    run(*arguments, "--earlier", ROOT, "--output", tmp_path / "timed")
    result = json.loads((tmp_path / "timed" / "benchmark.json").read_text())
    assert torch.__version__.startswith(result["machine"]["versions"]["torch"].partition("+")[0])
    assert [(setting["threads"], setting["batch_size"]) for setting in result["settings"]] == [(1, 1), (1, 2)]
    for setting in result["settings"]:
        rows = {row["label"]: row for row in setting["rows"]}
        forms = [f"{name}:{form}" for name in ("mobile_former_26m", "e2e_mf_26m") for form in ("eager", "deployed")]
        assert list(rows) == [*forms[:2], "earlier/mobile_former_26m:eager", *forms[2:], "small.onnx"]
        assert setting["baseline"] == "small.onnx"
        base = rows["small.onnx"]["seconds"]
        for row in rows.values():
            assert len(row["seconds"]) == 3
            assert row["ms"] == pytest.approx(1000 * statistics.median(row["seconds"]))
            assert row["images_per_s"] == pytest.approx(setting["batch_size"] / statistics.median(row["seconds"]))
            assert row["ratio"] == pytest.approx(
                statistics.median(own / other for own, other in zip(row["seconds"], base, strict=True))
            )
            assert row["ms_quartiles"][0] <= row["ms"] <= row["ms_quartiles"][1]
        assert rows["small.onnx"]["ratio"] == 1
        assert rows["small.onnx"]["madds"] == PEER_MADDS
        ours = mobile_former.cost(mobile_former.mobile_former_26m(), (32, 32)).madds
        assert rows["mobile_former_26m:deployed"]["madds"] == ours
        assert rows["earlier/mobile_former_26m:eager"]["madds"] == ours
        assert rows["mobile_former_26m:eager"]["speedup"] == 1
        assert rows["small.onnx"]["speedup"] is None
    table = (tmp_path / "timed" / "benchmark.md").read_text()
    assert table in capsys.readouterr().out
    first = result["settings"][0]["rows"][0]
    assert f"| mobile_former_26m | {ours / 1e6:.1f} M | {first['ms']:.2f} ({first['ratio']:.2f}) |" in table
    assert result["machine"]["cpu"] in table
    assert cv2.imread(str(tmp_path / "timed" / "benchmark.png")).shape[1] > 1000


def test_training_writes_throughput_and_a_trace_on_a_cpu(run, tmp_path, capsys):
    arguments = ["--training", "true", "--models", "mobile_former_26m", "--image_size", "32", "--batch_sizes", "2"]
    arguments += ["--peers", "transformers/mobilenet_v2_0.35", "--rounds", "2", "--warmup", "0", "--threads", "1"]
    arguments += ["--earlier", ROOT, "--device", "cpu", "--output", tmp_path, "--trace", tmp_path / "trace.json"]
    run(*arguments)
    result = json.loads((tmp_path / "training.json").read_text())
    (setting,) = result["settings"]
    names = ("mobile_former_26m", "earlier/mobile_former_26m", "transformers/mobilenet_v2_0.35")
    labels = [f"{name}:eager:{layout}" for name in names for layout in ("contiguous", "channels_last")]
    assert [row["label"] for row in setting["rows"]] == labels
    assert setting["baseline"] == "transformers/mobilenet_v2_0.35:eager:contiguous"
    for row in setting["rows"]:
        assert row["images_per_s"] == pytest.approx(2 / statistics.median(row["seconds"]))
        assert row["memory"] is None
        assert row["saved"] > 10**5
    assert setting["trace"]["label"] == labels[0]
    times = [kernel["ms"] for kernel in setting["trace"]["kernels"]]
    assert times == sorted(times, reverse=True)
    assert any("convolution_backward" in event.get("name", "") for event in trace_events(tmp_path / "trace.json"))
    table = (tmp_path / "training.md").read_text()
    assert table in capsys.readouterr().out
    assert "bf16" in table
    assert "convolution_backward" in table
    assert cv2.imread(str(tmp_path / "training.png")) is not None


def test_training_of_detectors_is_timed_with_their_loss(run, tmp_path):
    arguments = ["--training", "true", "--models", "e2e_mf_26m", "retinanet_mf_26m", "--image_size", "64", "96"]
    arguments += ["--batch_sizes", "1", "--precision", "float32", "--layouts", "contiguous", "--rounds", "1"]
    run(*arguments, "--warmup", "0", "--device", "cpu", "--output", tmp_path)
    (setting,) = json.loads((tmp_path / "training.json").read_text())["settings"]
    assert [row["label"] for row in setting["rows"]] == [
        "e2e_mf_26m:eager:contiguous",
        "retinanet_mf_26m:eager:contiguous",
    ]
    assert all(row["saved"] > 10**6 for row in setting["rows"])


def test_bytes_kept_for_the_backward_pass_are_counted_once_and_without_weights():
    model = torch.nn.Linear(30, 50)
    x = torch.randn(20, 30)
    # x for the weight's gradient, the sigmoid's output for its own and once more for the product
    assert saved_bytes(lambda: (model(x).sigmoid() * 3).square().sum(), model) == 4 * (20 * 30 + 2 * 20 * 50)


def trace_events(path):
    return json.loads(path.read_text())["traceEvents"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_compiled_and_exported_models_are_timed_with_eager_ones(run, tmp_path):
    arguments = ["--models", "mobile_former_26m", "--forms", *benchmark.FORMS, "--image_size", 32, "--rounds", 2]
    run(*arguments, "--output", tmp_path)
    (setting,) = json.loads((tmp_path / "benchmark.json").read_text())["settings"]
    assert [row["label"] for row in setting["rows"]] == [f"mobile_former_26m:{form}" for form in benchmark.FORMS]
    assert all(row["speedup"] > 0 for row in setting["rows"])


@pytest.mark.slow
def test_multiply_adds_of_an_exported_model_are_those_of_the_model(tmp_path):
    model = mobile_former.mobile_former_26m().eval()
    torch.onnx.export(model, (torch.zeros(1, 3, 64, 64),), tmp_path / "model.onnx", dynamo=True, verbose=False)
    expected = mobile_former.cost(model, (64, 64)).madds
    # For a single image the exporter precomputes the operations that depend only on the learned tokens.
    assert 0.99 * expected < OnnxGraph(tmp_path / "model.onnx").madds((64, 64)) <= expected


@pytest.mark.parametrize("forms", [["deployed", "onnx"], ["eager", "deployed", "compiled", "onnx"]])
def test_models_of_other_libraries_are_timed_eager_and_in_the_given_forms_except_deployed(forms, tmp_path):
    name = "transformers/mobilenet_v2_0.35"
    found = model_candidates(name, forms, (32, 32), torch.device("cpu"), tmp_path)
    assert [candidate.form for candidate in found] == [
        "eager",
        *(form for form in forms if form in {"compiled", "onnx"}),
    ]
    assert all(candidate.is_peer and candidate.model == name for candidate in found)


@pytest.mark.slow
def test_a_model_of_timm_for_images_of_one_size_is_built_and_exported_for_the_size(timm, tmp_path):
    images = torch.randn(1, 3, 96, 128)
    eager, onnx = model_candidates("timm/levit_128s", ["eager", "onnx"], (96, 128), torch.device("cpu"), tmp_path)
    with torch.no_grad():
        expected = eager.prepare(1, images)()
    torch.testing.assert_close(torch.from_numpy(onnx.prepare(1, images)()[0]), expected, rtol=1e-3, atol=1e-4)


def test_a_peer_runs_on_another_batch_size_than_its_files(peer):
    graph = OnnxGraph(peer)
    images = torch.randn(3, 3, 32, 32)
    (together,) = graph.prepare(1, images)()
    (alone,) = graph.prepare(1, images[1:2])()
    torch.testing.assert_close(torch.from_numpy(together[1:2]), torch.from_numpy(alone))
    assert together.shape == (3, 10)


def test_an_earlier_version_is_built_and_leaves_no_trace_in_the_interpreter(tmp_path):
    package = tmp_path / "mobile_former"
    package.mkdir()
    text = "import sys\nfrom torch import nn\nfrom mobile_former.part import WIDTH\nsys.meta_path.insert(0, object())\n"
    (package / "__init__.py").write_text(text + "def create_model(name):\n    return nn.Linear(WIDTH, 1)\n")
    (package / "part.py").write_text("WIDTH = 5\n")
    before = dict(sys.modules), list(sys.path), list(sys.meta_path)
    assert create_earlier(tmp_path, "any").in_features == 5
    assert (dict(sys.modules), list(sys.path), list(sys.meta_path)) == before
    with pytest.raises(InputError, match="git worktree add"):
        create_earlier(tmp_path / "elsewhere", "any")


def test_the_cpu_has_the_name_that_linux_reports(tmp_path):
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Fast CPU @ 2 GHz\n\nprocessor\t: 1\n")
    assert cpu_name(tmp_path / "cpuinfo") == "Fast CPU @ 2 GHz"
    assert cpu_name(tmp_path / "none")
    machine = describe_machine(torch.device("cpu"))
    assert machine["cores"] >= 1
    assert machine["gpu"] is None
    assert machine["versions"]["torch"]


def test_peers_given_by_name_file_and_folder_are_listed_once(peer):
    assert find_peers(["timm/resnet18", str(peer), str(peer.parent)]) == ["timm/resnet18", peer]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "mobile_former_27m"], "no model is named 'mobile_former_27m': did you mean"),
        (["--baseline", "mobile_former_26m:onnx"], "mobile_former_26m:onnx is not timed.*'mobile_former_26m:eager'"),
        (["--peers", "{tmp}/text.onnx"], "text.onnx is not an ONNX file"),
        (["--peers", "{tmp}/missing.onnx"], "the file .*missing.onnx does not exist"),
        (["--peers", "{tmp}/empty"], "empty: the folder has no .onnx file"),
        (["--peers", "{tmp}/peers", "{tmp}/twin"], "several files are named small.onnx"),
        (["--peers", "{tmp}/peers", "--image_size", "64"], "takes images of 32x32 pixels, not 64x64"),
        (["--peers", "transformers/mobilenet_v3"], "mobilenet_v2_1.0"),
        (["--forms", "fast"], "--forms fast: choose from 'eager'"),
        (["--rounds", "0"], "--rounds is 0: give at least 1"),
        (["--warmup", "-1"], "--warmup is -1"),
        (["--image_size", "32", "32", "32"], "one side, or height and width"),
        (["--device", "quantum"], "give cpu or cuda"),
        (["--earlier", "{tmp}/empty"], "empty has no earlier version"),
        (["--layouts", "channels_last"], "option of training"),
        (["--training", "true", "--forms", "onnx"], "--forms onnx: choose from 'eager', 'compiled'"),
        (["--training", "true", "--models", "e2e_mf_27m"], "no model is named 'e2e_mf_27m'.*e2e_mf_26m"),
        (["--training", "true", "--peers", "{tmp}/peers"], "an ONNX file cannot be trained"),
        (["--training", "true", "--threads", "1", "2"], "one number of threads"),
        (["--training", "true", "--trace", "trace.txt"], "ends in .json or .json.gz"),
        (["--training", "true", "--baseline", "mobile_former_26m"], "mobile_former_26m:eager:contiguous"),
    ],
)
def test_wrong_options_are_errors_before_anything_is_timed(run, peer, tmp_path, monkeypatch, arguments, message):
    monkeypatch.setattr(benchmark, "time_rounds", lambda *_: pytest.fail("timed"))
    (tmp_path / "text.onnx").write_text("this is not a graph")
    (tmp_path / "empty").mkdir()
    write_onnx_peer(tmp_path / "twin" / "small.onnx", side=32)
    smallest = ["--models", "mobile_former_26m", "--forms", "eager", "--image_size", "32", "--output", tmp_path / "out"]
    with pytest.raises((InputError, FileNotFoundError), match=re.compile(message, re.DOTALL)):
        run(*smallest, *(argument.format(tmp=tmp_path) for argument in arguments))


def made_up(rows, **options):
    """Return a result in the benchmark's format."""
    machine = {"cpu": "Some CPU", "cores": 2, "system": "Linux", "load": None, "gpu": "Some GPU", "versions": {}}
    defaults = {"image_size": [224, 224], "rounds": 3, "repeat": 1, "training": False, "precision": "bf16"}
    setting = {"threads": 2, "batch_size": 4, "baseline": rows[0]["label"], "rows": rows, "trace": None}
    return {"machine": machine, "options": defaults | options, "settings": [setting] * 3}


def made_up_row(model, form, ms, **more):
    row = {"label": f"{model}:{form}", "model": model, "form": form, "is_peer": "/" in model, "ms": ms, "ratio": 1.0}
    spread = {"ms_quartiles": [ms, ms], "ratio_quartiles": [1.0, 1.0], "images_per_s": 4000 / ms, "madds": 2e8}
    return row | spread | more


def test_pictures_show_several_settings_detectors_and_the_memory_of_a_gpu(tmp_path):
    models = ("mobile_former_26m", "mobile_former_294m", "e2e_mf_26m", "retinanet_mf_26m", "detr_r50", "timm/a$b$")
    rows = [made_up_row(model, form, 3.0) for model in models for form in benchmark.FORMS]
    draw_latency(made_up(rows), tmp_path / "latency.png")
    trained = [
        made_up_row(model, "eager", 3.0, layout="channels_last", memory=2**31, saved=2**29) for model in models[:2]
    ]
    result = made_up(trained, training=True)
    draw_training(result, tmp_path / "training.png")
    assert "| 2.00 | 0.50 |" in training_table(result)
    for name in ("latency.png", "training.png"):
        assert cv2.imread(str(Path(tmp_path / name))).shape[1] > 1000
