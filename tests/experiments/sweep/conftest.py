"""Fixtures for the tests of sweeps: stand-in trainings, workers in processes of their own, and a PostgreSQL server."""

import csv
import multiprocessing
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import yaml

from experiments import runs
from experiments.sweep import command, storage, worker
from experiments.sweep.__main__ import main
from experiments.sweep.plan import read_plan
from experiments.sweep.study import Sweep
from experiments.sweep.worker import run_trials
from tests.conftest import ROOT
from tests.experiments.stand_in import stand_in_for_fit

RATE = {"low": 1e-5, "high": 1e-1, "log": True}


def write_config(path, **content):
    """Write the config of a sweep of learning rates, with other entries; "absent" leaves an entry out."""
    default = {"task": "classification", "config": "digits.yaml", "space": {"model.learning_rate": RATE}, "trials": 4}
    content = {name: value for name, value in (default | content).items() if value != "absent"}
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def open_sweep(config, url, others=(), **options):
    """Open a sweep whose output is next to its config."""
    return Sweep(read_plan(config), config.stem, config.parent / "output", url, list(others), **options)


def listed(folder):
    """Return the list that the stand-in trainings wrote."""
    path = folder / "list"
    return path.read_text().splitlines() if path.is_file() else []


def records(output):
    """Return the rows of ``trials.csv``."""
    return list(csv.DictReader((output / "trials.csv").open(newline="")))


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Let sweeps in this process and its forks run stand-in trainings, and look at them often."""
    monkeypatch.setattr(runs.Training, "command", runs.Training.command)
    monkeypatch.setattr(command, "require_options", command.require_options)
    monkeypatch.setattr(worker, "PAUSE", 0.05)
    stand_in_for_fit()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("STAND_IN_LIST", str(tmp_path / "list"))


@pytest.fixture
def sweeping(stand_in, monkeypatch, capsys):
    """Run sweeps in this process; a run returns exit status, output and errors."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["sweep", *arguments])
        status = 0
        try:
            main()
        except SystemExit as end:
            status = end.code
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


@pytest.fixture
def start_worker(monkeypatch):
    """Start workers as forks of this process, which do not import anything again; they are killed at the end."""
    monkeypatch.setattr(storage, "HEARTBEAT", 1)
    monkeypatch.setattr(storage, "GRACE", 4)
    workers = []

    def work(*arguments):
        signal.signal(signal.SIGINT, signal.default_int_handler)
        run_trials(open_sweep(*arguments), 1)

    def start(*arguments):
        process = multiprocessing.get_context("fork").Process(target=work, args=arguments)
        process.start()
        workers.append(process)
        return process

    yield start
    for process in workers:
        process.kill()
        process.join()


@pytest.fixture(scope="session")
def postgresql():
    """Start a PostgreSQL server on loopback; return a function that creates a database and returns its URL."""
    psycopg = pytest.importorskip("psycopg")
    places = [*map(str, Path("/usr/lib/postgresql").glob("*/bin")), os.environ["PATH"]]
    programs = [shutil.which(name, path=":".join(places)) for name in ("initdb", "postgres")]
    if None in programs:
        pytest.skip("PostgreSQL is not installed")
    user = {}
    folder = Path(tempfile.mkdtemp(prefix="postgresql-"))
    if os.geteuid() == 0:  # PostgreSQL does not run as root
        try:
            account = pwd.getpwnam("postgres")
        except KeyError:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
        os.chown(folder, account.pw_uid, account.pw_gid)
        user = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {"cwd": folder, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, **user}
    initdb = [programs[0], "-D", folder / "data", "-U", "tester", "-A", "trust", "-E", "UTF8", "--no-locale", "-N"]
    subprocess.run(initdb, check=True, **options)
    command = [programs[1], "-D", folder / "data", "-h", "127.0.0.1", "-p", str(port), "-k", folder, "-F"]
    server, made = subprocess.Popen(command, **options), []

    def connect():
        return psycopg.connect(host="127.0.0.1", port=port, user="tester", dbname="postgres", autocommit=True)

    def create():
        made.append(f"sweeps_{len(made)}")
        with connect() as connection:
            connection.execute(f"CREATE DATABASE {made[-1]}")
        return f"postgresql+psycopg://tester@127.0.0.1:{port}/{made[-1]}"

    deadline = time.monotonic() + 60
    while True:
        try:
            connect().close()
            break
        except psycopg.OperationalError:  # it is starting
            assert server.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
    yield create
    server.send_signal(signal.SIGINT)  # ends its connections
    server.wait()
    shutil.rmtree(folder)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    """The URL of a new database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/study.db"
    return request.getfixturevalue("postgresql")()
