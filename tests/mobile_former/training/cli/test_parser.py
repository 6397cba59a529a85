import pytest
from jsonargparse import ActionConfigFile
from pytorch_lightning import LightningDataModule, LightningModule, Trainer

from mobile_former.training.cli.lightning_parser import LightningParser


class Model(LightningModule):
    """A model.

    Args:
        name: name of the model.
        learning_rate: learning rate of the optimiser.
        pretrained: path of a weights file.
    """

    def __init__(self, name: str = "small", learning_rate: float = 1e-3, pretrained: str | None = None):
        super().__init__()


class Data(LightningDataModule):
    """Data.

    Args:
        root: path of a folder.
        batch_size: number of images in a batch.
    """

    def __init__(self, root: str = ".", batch_size: int = 4):
        super().__init__()


@pytest.fixture
def parser():
    parser = LightningParser(prog="python -m task.fit")
    parser.add_argument("--config", action=ActionConfigFile)
    parser.add_argument("--name", type=str | None, default=None)
    parser.add_argument("--ckpt_path", type=str | None, default=None)
    parser.add_lightning_class_args(Trainer, "trainer")
    parser.add_lightning_class_args(Model, "model")
    parser.add_lightning_class_args(Data, "data")
    return parser


def error_of(parser, capsys, *arguments):
    """Return the error that the parser prints for a command line."""
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
def test_the_error_for_a_misspelt_option_suggests_the_right_one(parser, capsys, given, meant, form):
    error = error_of(parser, capsys, *([given, "3"] if form == "apart" else [f"{given}=3"]))
    assert given in error
    assert f"did you mean '{meant}'" in error


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
def test_the_error_for_a_misspelt_key_of_a_config_suggests_the_right_one(
    parser, capsys, tmp_path, written, given, meant
):
    path = tmp_path / "mine.yaml"
    path.write_text(written)
    error = error_of(parser, capsys, "--config", str(path))
    assert given in error
    assert f"'{meant}" in error[error.index("did you mean") :]


def test_the_error_for_an_unknown_class_suggests_the_right_one(parser, capsys):
    error = error_of(parser, capsys, "--trainer.logger", "CSVLoger")
    assert error.startswith("error: --trainer.logger: no class is named 'CSVLoger': did you mean 'CSVLogger'")


def test_options_cannot_be_abbreviated(parser, capsys):
    for abbreviation in ("--nam", "--ckpt", "--trainer.max_e", "--model.learn"):
        assert "did you mean" in error_of(parser, capsys, abbreviation, "1")


def test_valid_options_are_accepted(parser, tmp_path):
    (tmp_path / "a.yaml").write_text("model: {learning_rate: 0.5}\nname: from the file\n")
    options = parser.parse_args(["--config", str(tmp_path / "a.yaml"), "--name=mine", "--trainer.max_epochs", "3"])
    assert (options.name, options.model.learning_rate, options.trainer.max_epochs) == ("mine", 0.5, 3)


@pytest.mark.parametrize(
    "arguments", [["--data.batch_size", "many"], ["--data.batch_size=1.5"], ["--model.learning_rate", "fast"]]
)
def test_the_error_for_a_value_of_the_wrong_type_names_the_option_and_suggests_none(parser, capsys, arguments):
    error = error_of(parser, capsys, *arguments)
    assert arguments[0].split("=")[0].removeprefix("--").split(".")[1] in error
    assert "did you mean" not in error


def test_a_long_value_is_cut_in_the_error(parser, capsys):
    with pytest.raises(SystemExit):
        parser.parse_args(["--trainer.max_epochs", str(list(range(9999)))])
    assert len(capsys.readouterr().err) < 2500


def test_the_error_for_a_missing_required_option_names_it(capsys):
    parser = LightningParser(prog="python -m task.fit")
    parser.add_argument("--ckpt_path", required=True)
    assert "ckpt_path" in error_of(parser, capsys)
