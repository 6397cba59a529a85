import logging
import warnings
from pathlib import Path

import pytest
from jsonargparse import ActionConfigFile
from pytorch_lightning import LightningDataModule, LightningModule, Trainer

from mobile_former.errors import InputError
from mobile_former.training.cli.command import Parser, require_writable, run_command


class Model(LightningModule):
    """A model.

    Args:
        name: of the model.
        learning_rate: of the optimiser.
        pretrained: a file.
    """

    def __init__(self, name: str = "small", learning_rate: float = 1e-3, pretrained: str | None = None):
        super().__init__()


class Data(LightningDataModule):
    """Data.

    Args:
        root: a folder.
        batch_size: of a batch.
    """

    def __init__(self, root: str = ".", batch_size: int = 4):
        super().__init__()


@pytest.fixture
def parser():
    parser = Parser(prog="python -m task.fit")
    parser.add_argument("--config", action=ActionConfigFile)
    parser.add_argument("--name", type=str | None, default=None)
    parser.add_argument("--ckpt_path", type=str | None, default=None)
    parser.add_lightning_class_args(Trainer, "trainer")
    parser.add_lightning_class_args(Model, "model")
    parser.add_lightning_class_args(Data, "data")
    return parser


def complaint(parser, capsys, *arguments):
    """What the parser prints to refuse a command line."""
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(list(arguments))
    assert ended.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.endswith("all options: python -m task.fit --help\n")
    assert len(printed.err.splitlines()) <= 6
    assert "Traceback" not in printed.err
    return printed.err


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("--trainer.max_epoch", "--trainer.max_epochs"),
        ("--trainer.max-epochs", "--trainer.max_epochs"),
        ("--max_epochs", "--trainer.max_epochs"),
        ("--learning_rate", "--model.learning_rate"),
        ("--model.batch_size", "--data.batch_size"),
        ("--batch_size", "--data.batch_size"),
        ("--model.learningrate", "--model.learning_rate"),
        ("--nmae", "--name"),
        ("--ckpt_pth", "--ckpt_path"),
        ("--data.rot", "--data.root"),
    ],
)
@pytest.mark.parametrize("form", ["apart", "joined"])
def test_a_misspelt_option_is_answered_with_the_one_that_was_meant(parser, capsys, given, meant, form):
    told = complaint(parser, capsys, *([given, "3"] if form == "apart" else [f"{given}=3"]))
    assert given in told
    assert f"did you mean '{meant}'" in told


@pytest.mark.parametrize(
    ("written", "given", "meant"),
    [
        ("trainer: {max_epoch: 3}", "max_epoch", "--trainer.max_epochs"),
        ("model: {learning_rte: 0.1}", "learning_rte", "--model.learning_rate"),
        ("data: {batchsize: 2}", "batchsize", "--data.batch_size"),
        ("nmae: mine", "nmae", "--name"),
        ("max_epochs: 3", "max_epochs", "--trainer.max_epochs"),
        ("modle: {name: small}", "modle", "--model"),
    ],
)
def test_a_misspelt_key_of_a_config_is_answered_with_the_one_that_was_meant(
    parser, capsys, tmp_path, written, given, meant
):
    path = tmp_path / "mine.yaml"
    path.write_text(written)
    told = complaint(parser, capsys, "--config", str(path))
    assert given in told
    assert f"'{meant}" in told[told.index("did you mean") :]


def test_options_are_not_abbreviated(parser, capsys):
    for abbreviation in ("--nam", "--ckpt", "--trainer.max_e", "--model.learn"):
        assert "did you mean" in complaint(parser, capsys, abbreviation, "1")


def test_the_right_options_are_accepted(parser, tmp_path):
    (tmp_path / "a.yaml").write_text("model: {learning_rate: 0.5}\nname: from the file\n")
    options = parser.parse_args(["--config", str(tmp_path / "a.yaml"), "--name=mine", "--trainer.max_epochs", "3"])
    assert (options.name, options.model.learning_rate, options.trainer.max_epochs) == ("mine", 0.5, 3)


@pytest.mark.parametrize(
    "arguments", [["--data.batch_size", "many"], ["--data.batch_size=1.5"], ["--model.learning_rate", "fast"]]
)
def test_a_value_of_the_wrong_type_is_refused_by_name_without_a_suggestion(parser, capsys, arguments):
    told = complaint(parser, capsys, *arguments)
    assert arguments[0].split("=")[0].removeprefix("--").split(".")[1] in told
    assert "did you mean" not in told


def test_a_long_value_does_not_make_a_long_message(parser, capsys):
    with pytest.raises(SystemExit):
        parser.parse_args(["--trainer.max_epochs", str(list(range(9999)))])
    assert len(capsys.readouterr().err) < 2500


def test_a_required_option_left_out_is_named(capsys):
    parser = Parser(prog="python -m task.fit")
    parser.add_argument("--ckpt_path", required=True)
    assert "ckpt_path" in complaint(parser, capsys)


@pytest.fixture(autouse=True)
def _keep_what_is_logged_and_warned():
    """A command silences libraries for its whole process, which here goes on."""
    names = ("mobile_former", "pytorch_lightning", "lightning_fabric", "lightning.pytorch", "lightning.fabric")
    levels = {name: logging.getLogger(name).level for name in names}
    with warnings.catch_warnings():
        yield
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def ended_by(main, capsys):
    with pytest.raises(SystemExit) as ended:
        run_command(main)
    return ended.value.code, capsys.readouterr()


def raising(error):
    def main():
        raise error

    return main


def test_a_command_that_does_its_work_ends_with_status_0(capsys):
    code, printed = ended_by(lambda: print("done"), capsys)
    assert (code, printed.out, printed.err) == (0, "done\n", "")


@pytest.mark.parametrize("kind", [InputError, FileNotFoundError])
def test_what_the_user_can_mend_is_told_in_a_line_with_status_1(capsys, kind):
    code, printed = ended_by(raising(kind("no folder photos: give --data.root")), capsys)
    assert (code, printed.out, printed.err) == (1, "", "error: no folder photos: give --data.root\n")


def test_a_file_that_the_system_does_not_find_is_told_by_its_name(capsys):
    code, printed = ended_by(Path("/nowhere/at/all.ckpt").read_bytes, capsys)
    assert code == 1
    assert "/nowhere/at/all.ckpt" in printed.err
    assert len(printed.err.splitlines()) == 1


def test_an_interrupted_command_ends_with_status_130(capsys):
    code, printed = ended_by(raising(KeyboardInterrupt()), capsys)
    assert (code, printed.err) == (130, "stopped\n")


def test_a_programming_error_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_command(lambda: 1 / 0)


def test_a_parsers_own_status_is_passed_on(parser, capsys):
    code, printed = ended_by(lambda: parser.parse_args(["--nmae", "x"]), capsys)
    assert code == 2
    assert "'--name'" in printed.err


@pytest.mark.parametrize("written", [False, True])
def test_a_command_that_fails_leaves_no_empty_folder_behind(tmp_path, written):
    (tmp_path / "before").mkdir()

    def main():
        require_writable(tmp_path / "before" / "x.json")
        require_writable(tmp_path / "new" / "deep" / "x.json")
        if written:
            (tmp_path / "new" / "y.json").write_text("")
        raise InputError("no")

    with pytest.raises(SystemExit):
        run_command(main)
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
    assert left == ["before", *(["new", "new/y.json"] if written else [])]


def test_a_command_that_works_keeps_the_folders_that_it_asked_for(tmp_path):
    with pytest.raises(SystemExit) as end:
        run_command(lambda: require_writable(tmp_path / "new" / "x.json"))
    assert end.value.code == 0
    assert (tmp_path / "new").is_dir()


def test_a_file_in_the_place_of_a_folder_is_told_by_name(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "x.json", tmp_path / "file" / "deep" / "x.json"):
        with pytest.raises(InputError, match=r"cannot write .*x\.json: .* at .*file"):
            require_writable(path)
