import pytest
from pytorch_lightning import LightningModule, Trainer

from mobile_former.training.cli.help import without_markup
from mobile_former.training.cli.lightning_parser import LightningParser


class Model(LightningModule):
    """A model, see :func:`create_model`.

    Args:
        name: name of the ``model``, such as Mobile-Former-with-a-long-name or
            scikit-learn's, see :class:`~torch.Tensor`.
    """

    def __init__(self, name: str = "small"):
        super().__init__()


@pytest.fixture
def helped(capsys, monkeypatch):
    """Return what a parser prints for some arguments, and its exit status."""
    monkeypatch.setenv("COLUMNS", "60")
    parser = LightningParser(prog="python -m task.fit", description="Train.")
    parser.add_argument("--runs", type=str, default="runs", help="folder of the runs")
    parser.add_lightning_class_args(Trainer, "trainer")
    parser.add_lightning_class_args(Model, "model")

    def call(*arguments):
        with pytest.raises(SystemExit) as end:
            parser.parse_args(list(arguments))
        printed = capsys.readouterr()
        return printed.out + printed.err, end.value.code

    return call


def test_the_help_has_this_project_s_options_and_names_the_topics(helped):
    printed, status = helped("--help")
    assert status == 0
    assert "--runs" in printed
    assert "--model.name" in printed
    assert "--help.trainer" in printed.split("options:")[0]
    assert "--trainer.devices" not in printed
    assert len(printed.splitlines()) < 30


def test_a_topic_has_the_options_of_the_trainer_without_their_classes(helped):
    printed, status = helped("--help.trainer")
    assert status == 0
    assert "--trainer.max_epochs MAX_EPOCHS" in printed
    assert "--runs" not in printed
    assert "known subclasses" not in printed
    assert "classes: --help.trainer.callbacks" in " ".join(printed.split())


def test_the_classes_of_an_option_are_listed_with_their_summaries(helped):
    printed, status = helped("--help.trainer.callbacks")
    assert status == 0
    (line,) = (line for line in printed.splitlines() if line.startswith("pytorch_lightning.callbacks.EarlyStopping "))
    assert "Monitor a metric" in line
    # fit adds its own callbacks.
    assert not [line for line in printed.splitlines() if line.startswith("mobile_former.")]


@pytest.mark.parametrize(
    "form", [["--help.trainer.callbacks", "EarlyStopping"], ["--help.trainer.callbacks=EarlyStopping"]]
)
def test_the_options_of_a_class_are_listed_without_markup(helped, form):
    printed, status = helped(*form)
    assert status == 0
    assert "--trainer.callbacks.patience" in printed
    assert "`" not in printed


def test_an_unknown_topic_is_an_error_that_names_the_nearest(helped):
    printed, status = helped("--help.trainr")
    assert status == 2
    assert "did you mean 'trainer'" in printed


def test_words_are_not_cut_and_markup_is_removed(helped):
    printed, _ = helped("--help")
    assert "Mobile-Former-with-a-long-name" in printed
    assert "scikit-learn's" in printed
    assert "`" not in printed
    assert "see create_model" in printed


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("a ``None`` or `x`", "a None or x"),
        (":class:`torch.Tensor`, :func:`~a.b`", "torch.Tensor, a.b"),
        (":paramref:`the name <a.b.name>`", "the name"),
        ("`the manual <https://x.org>`_ says", "the manual says"),
        (".. warning::  This is new.\n  Really.", "This is new. Really."),
        ("5 < 6 and a_b", "5 < 6 and a_b"),
    ],
)
def test_markup_of_docstrings_is_removed(text, plain):
    assert without_markup(text) == plain
