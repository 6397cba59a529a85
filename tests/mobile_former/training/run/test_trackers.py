"""Loggers by name, and what reaches them."""

import json
import os
import subprocess
import sys
import threading
import zipfile
from types import SimpleNamespace

import pytest
import yaml
from pytorch_lightning import loggers
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from mobile_former.errors import InputError
from mobile_former.training.cli.parser import Parser
from mobile_former.training.run import trackers
from mobile_former.training.run.folder import ContinuedCSVLogger, RunFolder
from mobile_former.training.run.trackers import build_loggers, connect, log_options, send_results
from tests.conftest import ROOT, run_module


@pytest.fixture
def folder(tmp_path):
    return RunFolder.create(tmp_path, "classification", "run")


def parse(*arguments):
    """Return the parsed value of ``--trainer.logger``, as the fit command gets it."""
    parser = Parser(prog="x")
    parser.add_argument("--trainer.logger", type=Logger | list[Logger] | bool | None, default=None)
    return parser.parse_args(list(arguments)).trainer.logger


class Recorder(Logger):
    """A tracker that keeps its options and what it is sent."""

    name = version = "recorder"

    def __init__(self, project: str = "default"):
        self.project, self.options = project, None

    def log_metrics(self, metrics, step=None):
        pass

    def log_hyperparams(self, params):
        self.options = params


class Refusing(Recorder):
    """A tracker that cannot be built."""

    def __init__(self):
        raise RuntimeError("The store is closed. Open it. " + "And so on. " * 100)


@pytest.mark.parametrize("given", [None, True, "csv", "tensorboard", "[csv, tensorboard]"])
def test_metrics_csv_and_tensorboards_log_are_written_always(given, folder):
    value = parse("--trainer.logger", given) if isinstance(given, str) else given
    built = build_loggers(value, folder, None)
    assert [type(each) for each in built] == [ContinuedCSVLogger, TensorBoardLogger]
    assert build_loggers(False, folder, None) is False


def test_other_loggers_are_added_with_their_options(folder):
    here = f"{__name__}.Recorder"
    for value in (
        parse("--trainer.logger", here, "--trainer.logger.project", "mine"),
        parse("--trainer.logger", json.dumps([{"class_path": here, "init_args": {"project": "mine"}}, "csv"])),
    ):
        built = build_loggers(value, folder, None)
        assert [type(each).__name__ for each in built] == ["ContinuedCSVLogger", "TensorBoardLogger", "Recorder"]
        assert built[2].project == "mine"


@pytest.mark.parametrize(("name", "package"), [("mlflow", "mlflow"), ("wandb", "wandb"), ("comet", "comet-ml")])
def test_a_missing_package_is_an_error_in_a_line_with_the_command_that_installs_it(name, package, folder, monkeypatch):
    monkeypatch.setattr(getattr(loggers, name), f"_{name.upper()}_AVAILABLE", False)
    with pytest.raises(InputError) as error:
        build_loggers(parse("--trainer.logger", name), folder, None)
    assert str(error.value) == f"--trainer.logger {name} needs a package that is missing: pip install {package}"


def test_a_logger_that_cannot_be_built_gives_the_reason_in_a_short_line(folder):
    with pytest.raises(InputError) as error:
        build_loggers(parse("--trainer.logger", f"{__name__}.Refusing"), folder, None)
    message = str(error.value)
    assert message.startswith("--trainer.logger Refusing: The store is closed. Open it. And so on.")
    assert message.endswith("And so on.")
    assert len(message) < 350


def test_a_tracker_without_a_login_gives_the_reason(monkeypatch):
    def experiment(_):
        raise RuntimeError("No API key configured.")

    connect([Recorder()])
    monkeypatch.setattr(Recorder, "experiment", property(experiment), raising=False)
    with pytest.raises(InputError, match=r"^--trainer.logger Recorder: No API key configured\.$"):
        connect([Recorder()])


def test_the_command_names_the_reason_and_leaves_no_folder(tmp_path):
    result = run_module("classification.fit", "--trainer.logger", f"{__name__}.Refusing", cwd=tmp_path)
    assert result.returncode == 1
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: --trainer.logger Refusing: The store is closed.")
    assert not list(tmp_path.glob("runs/classification/*"))


def test_hparams_yaml_has_the_options_and_every_logger_gets_them(folder):
    csv, recorder = ContinuedCSVLogger(folder), Recorder()
    options = {"model": {"learning_rate": 0.1, "_private": 1, "size": (2, 3)}, "run": {"name": "run"}}
    log_options(SimpleNamespace(loggers=[csv, recorder]), options)
    csv.save()
    expected = {"model": {"learning_rate": 0.1, "size": [2, 3]}, "run": {"name": "run"}}
    assert recorder.options == expected
    assert yaml.safe_load((folder.path / "hparams.yaml").read_text()) == expected


def test_results_that_do_not_reach_a_tracker_are_a_warning(folder, monkeypatch, caplog):
    class Lost(loggers.MLFlowLogger):
        def __init__(self):
            pass

        @property
        def experiment(self):
            raise ConnectionError("no route to host")

    (folder.path / "curves.png").touch()
    send_results([Lost(), CSVLogger(folder.path)], folder, folder.best)
    assert "did not reach Lost: no route to host" in caplog.text


def read_wandb(path):
    """Return the records of W&B's offline file, which has the log format of LevelDB."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, block, records, parts = path.read_bytes(), 7, 2**15, [], b""
    while position + 7 <= len(data):
        if block - position % block < 7:
            position += block - position % block
            continue
        length, kind = int.from_bytes(data[position + 4 : position + 6], "little"), data[position + 6]
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or its last part
            record = Record()
            record.ParseFromString(parts)
            records.append(record)
            parts = b""
    return records


def tracked_run(cwd, tracker, **environment):
    """Train shortly with a tracker, and return the folder of the run."""
    arguments = (
        "--name", "tracked", "--trainer.logger", tracker, "--model.name", "mobile_former_26m",
        "--data.image_size", "32", "--data.batch_size", "8", "--trainer.max_epochs", "1",
        "--trainer.limit_train_batches", "3", "--trainer.limit_val_batches", "1",
    )  # fmt: skip
    environment |= {"MLFLOW_TRACKING_URI": "", "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    command = [sys.executable, "-m", "classification.fit", *arguments]
    result = subprocess.run(command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    return cwd / "runs" / "classification" / "tracked"


@pytest.mark.slow
def test_mlflow_and_wandb_get_options_metrics_name_pictures_and_the_best_checkpoint(tmp_path, monkeypatch):
    """Read back with the trackers' own API."""
    mlflow = pytest.importorskip("mlflow", reason="pip install mlflow")
    pytest.importorskip("wandb", reason="pip install wandb")
    run = tracked_run(tmp_path, "[wandb, mlflow]", MLFLOW_ALLOW_FILE_STORE="true", WANDB_MODE="offline")
    best, pictures = str(run / "checkpoints" / "best.ckpt"), {path.name for path in run.glob("*.png")}
    assert (run / "metrics.csv").is_file()
    assert list((run / "tensorboard").glob("events.*"))
    written = yaml.safe_load((run / "hparams.yaml").read_text())
    assert written["model"]["name"] == "mobile_former_26m"
    assert written["data"]["batch_size"] == 8

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    client = mlflow.MlflowClient(f"file:{tmp_path / 'mlruns'}")
    (experiment,) = [each for each in client.search_experiments() if each.name != "Default"]
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.run_name == "tracked"
    assert found.info.status == "FINISHED"
    assert found.data.params["model/name"] == "mobile_former_26m"
    assert found.data.params["data/batch_size"] == "8"
    assert found.data.params["data/class_balance"] == "0.0"
    assert "val/top1" in found.data.metrics
    assert found.data.tags["best_checkpoint"] == best
    assert {artifact.path for artifact in client.list_artifacts(found.info.run_id, "pictures")} == {
        f"pictures/{name}" for name in pictures
    }

    (file,) = run.glob("wandb/offline-run-*/*.wandb")
    records = read_wandb(file)
    (started,) = {record.run.display_name for record in records if record.HasField("run")}
    assert started == "tracked"
    config = {item.key: item.value_json for record in records for item in record.config.update}
    config |= {"/".join(item.nested_key): item.value_json for record in records for item in record.config.update}
    assert "mobile_former_26m" in json.dumps(config)
    summary = {
        "/".join(item.nested_key) or item.key: item.value_json for record in records for item in record.summary.update
    }
    assert json.loads(summary["best_checkpoint"]) == best
    logged = {[*item.nested_key, item.key][0] for record in records for item in record.history.item}
    assert {"val/top1"} | {f"pictures/{name.removesuffix('.png')}" for name in pictures} <= logged


@pytest.mark.parametrize("name", ["comet", "pytorch_lightning.loggers.CometLogger"])
def test_an_offline_experiment_of_comet_is_not_disabled_and_has_the_runs_name_and_folder(name, folder, monkeypatch):
    started = []
    experiment = SimpleNamespace(get_key=lambda: "key", project_name=None, log_other=lambda *_: None)
    comet = SimpleNamespace(
        ExperimentConfig=lambda **options: options, start=lambda **options: started.append(options) or experiment
    )
    monkeypatch.setitem(sys.modules, "comet_ml", comet)
    monkeypatch.setattr(loggers.comet, "_COMET_AVAILABLE", True)
    monkeypatch.setenv("COMET_DISABLE_AUTO_LOGGING", "1")  # Lightning sets it
    build_loggers(parse("--trainer.logger", name, "--trainer.logger.online", "false"), folder, None)
    (options,) = started
    assert options["online"] is False
    assert options["experiment_config"] == {"name": "run", "offline_directory": str(folder.path)}


@pytest.mark.slow
def test_comet_gets_options_metrics_name_pictures_and_the_best_checkpoint_offline(tmp_path):
    pytest.importorskip("comet_ml", reason="pip install comet-ml")
    run = tracked_run(tmp_path, json.dumps({"class_path": "comet", "init_args": {"online": False}}))
    (archive,) = run.glob("*.zip")
    with zipfile.ZipFile(archive) as opened:
        messages = [json.loads(line) for line in opened.read("messages.json").splitlines()]
    sent = {}
    for message in messages:
        sent.setdefault(message["type"], []).append(message["payload"])
    others = {payload["key"]: payload["value"] for payload in sent["log_other"]}
    assert others["Name"] == "tracked"
    assert others["best_checkpoint"] == str(run / "checkpoints" / "best.ckpt")
    parameters = [payload["param"] for payload in sent["parameter_msg"] if "param" in payload]  # others: lists
    assert {row["paramName"]: row["paramValue"] for row in parameters}["model|name"] == "mobile_former_26m"
    assert "val/top1" in {payload["metric"]["metricName"] for payload in sent["metric_msg"]}
    pictures = {payload["additional_params"].get("figName") for payload in sent["file_upload"]}
    assert {f"pictures/{path.stem}" for path in run.glob("*.png")} <= pictures


def test_the_error_of_a_thread_of_tensorboard_is_not_printed_beside_that_of_the_run(tmp_path, monkeypatch):
    printed = []
    monkeypatch.setattr(threading, "excepthook", printed.append)
    trackers._quieten_tensorboard.__wrapped__()
    writer = EventFileWriter(str(tmp_path), flush_secs=0)

    def fill(*_):
        raise OSError("the disk is full")

    monkeypatch.setattr(writer._async_writer._worker._record_writer, "write", fill)
    writer.add_event(Event())
    writer._async_writer._worker.join()
    with pytest.raises(OSError, match="the disk is full"):
        writer.flush()
    assert not printed
    other = threading.Thread(target=fill)
    other.start()
    other.join()
    assert [error.exc_type for error in printed] == [OSError]
