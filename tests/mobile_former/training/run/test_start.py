from types import SimpleNamespace

import pytest
import torch

from mobile_former.errors import InputError
from mobile_former.training.run.folder import RunFolder
from mobile_former.training.run.start import start_run

MODULE = SimpleNamespace(
    architecture=("name",), hparams={"class_names": ["a", "b"], "name": "small", "learning_rate": 0.1, "ema_decay": 0.0}
)
DATA = SimpleNamespace(hparams={"batch_size": 4})


def write_checkpoint(path, step, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"hyper_parameters": MODULE.hparams | options, "global_step": step}
    torch.save(content | {"datamodule_hyper_parameters": {"batch_size": options.get("batch_size", 4)}}, path)


def start(runs, ckpt_path=None):
    return start_run(runs, "task", "x", ckpt_path, MODULE, DATA)


@pytest.fixture
def checkpoints(tmp_path):
    """Checkpoint folder of a run that was stopped after step 6."""
    folder = tmp_path / "task" / "x" / "checkpoints"
    write_checkpoint(folder / "previous.ckpt", 3)
    write_checkpoint(folder / "last.ckpt", 6)
    return folder


def damage(path):
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize("ckpt_path", [None, "auto"])
def test_a_new_run_has_a_folder_and_no_checkpoint(tmp_path, ckpt_path):
    folder, checkpoint, step, _ = start(tmp_path, ckpt_path)
    assert folder.path == tmp_path / "task" / "x"
    assert folder.path.is_dir()
    assert (checkpoint, step) == (None, None)


@pytest.mark.parametrize("ckpt_path", ["last", "auto"])
def test_a_run_resumes_in_its_folder_from_its_last_checkpoint(tmp_path, checkpoints, ckpt_path, capsys):
    folder, checkpoint, step, _ = start(tmp_path, ckpt_path)
    assert folder.path == checkpoints.parent
    assert (checkpoint, step) == (checkpoints / "last.ckpt", 6)
    assert capsys.readouterr().out == f"from   {checkpoint}, step 6\n"


def test_a_run_from_a_file_gets_a_new_folder(tmp_path, checkpoints):
    folder, checkpoint, step, _ = start(tmp_path, str(checkpoints / "last.ckpt"))
    assert folder.path == tmp_path / "task" / "x-2"
    assert (checkpoint, step) == (checkpoints / "last.ckpt", None)


def test_a_damaged_last_checkpoint_is_replaced_by_the_previous_one(tmp_path, checkpoints, caplog):
    damage(checkpoints / "last.ckpt")
    assert start(tmp_path, "last")[1:3] == (checkpoints / "previous.ckpt", 3)
    assert "last.ckpt is cut short or damaged" in caplog.text
    assert "previous.ckpt, at step 3" in caplog.text
    (checkpoints / "last.ckpt").unlink()
    assert start(tmp_path, "last")[1:3] == (checkpoints / "previous.ckpt", 3)


def test_the_error_for_damaged_checkpoints_names_all_of_them(tmp_path, checkpoints):
    for path in checkpoints.iterdir():
        damage(path)
    with pytest.raises(InputError, match=r"every checkpoint of the run is damaged: .*last\.ckpt.*previous\.ckpt"):
        start(tmp_path, "last")


@pytest.mark.parametrize(("step", "expected"), [(9, "hpc_ckpt_2.ckpt"), (6, "last.ckpt"), (4, "last.ckpt")])
def test_a_checkpoint_of_lightning_s_handler_for_slurm_is_used_if_it_is_newer(tmp_path, checkpoints, step, expected):
    write_checkpoint(checkpoints.parent / "hpc_ckpt_2.ckpt", step)
    _, checkpoint, found, _ = start(tmp_path, "auto")
    assert (checkpoint.name, found) == (expected, max(step, 6))
    damage(checkpoints.parent / "hpc_ckpt_2.ckpt")
    assert start(tmp_path, "auto").checkpoint.name == "last.ckpt"


def test_a_task_of_an_array_never_resumes_the_run_of_another_one(tmp_path, checkpoints, monkeypatch):
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "100")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    RunFolder(checkpoints.parent).write_config("name: x\n", resumed=False)
    assert start(tmp_path, "auto").step == 6
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    for ckpt_path in ("auto", "last"):
        with pytest.raises(InputError, match=r"is that of SLURM's array task 100_1, .* --name, or none"):
            start(tmp_path, ckpt_path)
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "101")  # submitted again later
    assert start(tmp_path, "auto").step == 6


@pytest.mark.parametrize(("option", "value"), [("name", "large"), ("class_names", ["a", "c"])])
def test_a_checkpoint_of_another_model_or_other_classes_is_an_error(tmp_path, option, value):
    write_checkpoint(tmp_path / "other.ckpt", 1, **{option: value})
    with pytest.raises(InputError, match=rf"other\.ckpt was trained with {option} .*--model\.pretrained"):
        start(tmp_path, str(tmp_path / "other.ckpt"))
    assert not (tmp_path / "task").exists()


def test_options_that_a_resumed_run_changes_are_named(tmp_path, capsys):
    path = tmp_path / "task" / "x" / "checkpoints" / "last.ckpt"
    write_checkpoint(path, 6, learning_rate=0.5, batch_size=2)
    start(tmp_path, "last")
    assert capsys.readouterr().out == (
        f"from   {path}, step 6\nnew    batch_size 4 (was 2), learning_rate 0.1 (was 0.5)\n"
    )


@pytest.mark.parametrize(("option", "value"), [("ema_decay", 0.9), ("freeze_backbone", True)])
def test_a_checkpoint_with_other_averaged_or_frozen_weights_is_an_error(tmp_path, option, value):
    write_checkpoint(tmp_path / "other.ckpt", 1, **{option: value})
    with pytest.raises(InputError, match=rf"other\.ckpt was trained with {option} {value}, .*--model\.pretrained"):
        start(tmp_path, str(tmp_path / "other.ckpt"))


def test_a_checkpoint_of_another_task_is_an_error(tmp_path):
    write_checkpoint(tmp_path / "other.ckpt", 1, class_names=["c"])
    content = torch.load(tmp_path / "other.ckpt")
    content["datamodule_hyper_parameters"] = {"crop_fraction": 0.875}
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(InputError, match=r"other\.ckpt is a checkpoint of another task, not of task\.fit"):
        start(tmp_path, str(tmp_path / "other.ckpt"))


def test_a_file_that_is_not_a_checkpoint_is_an_error(tmp_path):
    torch.save({"weight": torch.zeros(1)}, tmp_path / "weights.pth")
    with pytest.raises(InputError, match=r"weights\.pth is not a checkpoint of task\.fit"):
        start(tmp_path, str(tmp_path / "weights.pth"))
