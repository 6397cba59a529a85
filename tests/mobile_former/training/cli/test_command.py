import logging
import warnings
from pathlib import Path

import pytest

from mobile_former.errors import InputError
from mobile_former.training.cli.command import require_writable, run_command
from mobile_former.training.cli.parser import Parser


@pytest.fixture(autouse=True)
def _restore_logging_and_warnings():
    """Restore the log levels and warning filters that a command changes for its process."""
    names = ("mobile_former", "pytorch_lightning", "lightning_fabric", "lightning.pytorch", "lightning.fabric")
    levels = {name: logging.getLogger(name).level for name in names}
    with warnings.catch_warnings():
        yield
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def run(main, capsys):
    """Return the exit status of a command and its output."""
    with pytest.raises(SystemExit) as ended:
        run_command(main)
    return ended.value.code, capsys.readouterr()


def raising(error):
    def main():
        raise error

    return main


def test_a_command_that_succeeds_exits_with_status_0(capsys):
    code, printed = run(lambda: print("done"), capsys)
    assert (code, printed.out, printed.err) == (0, "done\n", "")


@pytest.mark.parametrize("kind", [InputError, FileNotFoundError])
def test_an_error_in_the_input_is_printed_in_one_line_and_exits_with_status_1(capsys, kind):
    code, printed = run(raising(kind("no folder photos: give --data.root")), capsys)
    assert (code, printed.out, printed.err) == (1, "", "error: no folder photos: give --data.root\n")


def test_the_error_for_a_missing_file_names_it(capsys):
    code, printed = run(Path("/nowhere/at/all.ckpt").read_bytes, capsys)
    assert code == 1
    assert "/nowhere/at/all.ckpt" in printed.err
    assert len(printed.err.splitlines()) == 1


def test_an_interrupted_command_exits_with_status_130(capsys):
    code, printed = run(raising(KeyboardInterrupt()), capsys)
    assert (code, printed.err) == (130, "stopped\n")


def test_a_programming_error_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_command(lambda: 1 / 0)


def test_the_exit_status_of_the_parser_is_kept(capsys):
    parser = Parser(prog="python -m task.fit")
    parser.add_argument("--name", type=str)
    code, printed = run(lambda: parser.parse_args(["--nmae", "x"]), capsys)
    assert code == 2
    assert "'--name'" in printed.err


def test_the_folder_of_an_output_file_is_created(tmp_path):
    for _ in range(2):
        require_writable(tmp_path / "new" / "deep" / "x.json")
    assert (tmp_path / "new" / "deep").is_dir()


@pytest.mark.parametrize("written", [False, True])
def test_a_command_that_fails_leaves_no_empty_folder(tmp_path, written):
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


def test_a_command_that_succeeds_keeps_its_folders(tmp_path):
    with pytest.raises(SystemExit) as end:
        run_command(lambda: require_writable(tmp_path / "new" / "x.json"))
    assert end.value.code == 0
    assert (tmp_path / "new").is_dir()


def test_an_output_file_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "x.json", tmp_path / "file" / "deep" / "x.json"):
        with pytest.raises(InputError, match=r"cannot write .*x\.json: .* at .*file"):
            require_writable(path)
    with pytest.raises(InputError, match="it is a folder; give a file name"):
        require_writable(tmp_path)
