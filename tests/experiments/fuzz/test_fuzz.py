import os
import pickle
import signal
import time
from random import Random

import pytest

from experiments.fuzz import damage
from experiments.fuzz.__main__ import fuzz
from experiments.fuzz.readers import KINDS, Kind
from experiments.fuzz.worker import GIGABYTES
from mobile_former.errors import InputError
from tests.conftest import run_module


def find_defects(tmp_path, read, make=lambda random: damage.File("a.bin", random.randbytes(8)), files=3, seconds=20.0):
    """Run the fuzzer with one reader on a few files."""
    return fuzz({"files": Kind(make, {"reader": read})}, files, 0, tmp_path / "out", seconds)


def lacks_a_key(path):
    return {}["weights"]


def hangs(path):
    time.sleep(60)


def kills_its_process(path):
    os.kill(os.getpid(), signal.SIGSEGV)


def unpickles(path):
    pickle.loads(path.read_bytes())


def takes_memory(path):
    bytearray(int((GIGABYTES + 0.5) * 2**30))


def fails_without_a_message(path):
    raise InputError("")


def fails_with_a_long_message(path):
    raise InputError("x" * 100_000)


class Payload:
    def __reduce__(self):
        return os.system, ("touch canary",)


def payload(random):
    return damage.File("a.pkl", pickle.dumps(Payload()))


@pytest.mark.parametrize(
    ("read", "what"),
    [
        (lacks_a_key, "raised KeyError: \"'weights'\" at test_fuzz.py"),
        (kills_its_process, "ended the process with status -11"),
        (fails_without_a_message, "without a message"),
        (fails_with_a_long_message, "a message of 100000 characters"),
    ],
)
def test_a_defect_is_reported_for_every_file_and_the_files_are_kept(tmp_path, read, what):
    defects = find_defects(tmp_path, read)
    assert len(defects) == 3
    for number, defect in enumerate(defects):
        assert what in defect.what
        assert defect.path == tmp_path / "out" / f"files-{number:06d}-a.bin"
        assert defect.path.read_bytes() == Random(f"0 files {number}").randbytes(8)
    lines = (tmp_path / "out" / "failures.txt").read_text().splitlines()
    assert len(lines) == 3
    assert lines[1].startswith("files-000001-a.bin: reader ")


def test_a_reader_that_hangs_is_stopped_and_the_next_file_is_read(tmp_path):
    start = time.monotonic()
    assert [defect.what for defect in find_defects(tmp_path, hangs, seconds=0.5)] == ["took more than 0.5 s"] * 3
    assert time.monotonic() - start < 20


def test_a_reader_that_takes_too_much_memory_is_a_defect(tmp_path):
    (defect,) = find_defects(tmp_path, takes_memory, files=1)
    assert "GB of memory" in defect.what


def test_a_reader_that_runs_code_from_a_file_is_a_defect(tmp_path):
    assert [defect.what for defect in find_defects(tmp_path, unpickles, payload)] == ["ran code from the file"] * 3


def test_a_reader_that_sets_the_environment_from_a_file_is_a_defect(tmp_path):
    def sets(path):
        os.environ[damage.CANARY] = "1"

    assert [defect.what for defect in find_defects(tmp_path, sets)] == ["ran code from the file"] * 3


def test_results_and_errors_that_the_commands_print_are_not_defects(tmp_path):
    def reads(path):
        number = path.read_bytes()[0] % 4
        if number == 0:
            raise InputError(f"{path} is odd")
        if number == 1:
            raise FileNotFoundError(f"no {path}")
        return "an error message" if number == 2 else None

    assert find_defects(tmp_path, reads, files=20) == []
    assert (tmp_path / "out" / "failures.txt").read_text() == ""


@pytest.mark.parametrize("kind", KINDS)
def test_files_depend_only_on_the_seed_and_differ_from_each_other(kind):
    make = KINDS[kind].make
    files, again = ([make(Random(f"0 {kind} {number}")) for number in range(40)] for _ in range(2))
    # In its older layout torch.save orders tensors by their addresses.
    assert [(name, len(data)) for name, data in files] == [(name, len(data)) for name, data in again]
    assert kind == "weights" or files == again
    assert len({file.data for file in files}) > 30


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_four_hundred_files_cause_no_defect(tmp_path):
    # Another seed than the 10 000 files in experiments/README.md.
    result = run_module("experiments.fuzz", "--files", "400", "--seed", "1", cwd=tmp_path, timeout=900)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout == "400 files (images, configs, coco, weights; seed 1): no defect\n"
