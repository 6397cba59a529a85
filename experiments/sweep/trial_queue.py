"""The trials of a sweep in a database: who runs which, so that each is run by one worker, and none is lost with it."""

import contextlib
import json
import os
import socket
import subprocess
import time
import uuid
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy
from optuna.storages import RDBStorage
from sqlalchemy import Column, Integer, MetaData, String, Table, Text, and_, select

from mobile_former.errors import InputError

BEAT = 5.0  # seconds between two signs of life
SILENCE = 120.0  # seconds without one after which a worker on another machine is given up
BUSY = 600  # seconds to wait for SQLite's lock, which is held for milliseconds

WAITING, RUNNING, DONE, FAILED = "waiting", "running", "done", "failed"

# Which pip package brings what a server's URL asks SQLAlchemy for.
_DRIVERS = {"psycopg": "'psycopg[binary]'", "psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}

_metadata = MetaData()
# Every change of owner is one UPDATE that tells whose the trial has to be before: in any database, one worker's
# succeeds. (Optuna reads a trial's state before it writes it, which in SQLite lets two workers take the same one.)
_trials = Table(
    "mobile_former_trials",
    _metadata,
    Column("study", String(200), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("fixed", Text, nullable=False),  # the parameters of a grid's point, JSON
    Column("state", String(16), nullable=False),
    Column("owner", String(64), nullable=False),  # of whoever runs it, a name used once
    Column("host", Text, nullable=False),
    Column("process", Text, nullable=False),  # the worker's, see process_identity
    Column("training", Text, nullable=False),  # and that of its training
    Column("beats", Integer, nullable=False),
)
_plans = Table(
    "mobile_former_plans",
    _metadata,
    Column("study", String(200), primary_key=True),
    Column("plan", Text, nullable=False),  # JSON
)


@dataclass(frozen=True)
class Claim:
    """A trial that this worker runs.

    Attributes:
        number: of the trial.
        owner: the name under which it is claimed.
        fixed: its parameters, where they are not sampled.
    """

    number: int
    owner: str
    fixed: dict


@dataclass(frozen=True)
class _Heard:
    """What is known of a worker elsewhere: its signs of life, since when there are so many, and whether one came."""

    owner: str
    beats: int
    since: float
    lives: bool


class TrialQueue:
    """The trials of one study.

    Args:
        url: of the database, as SQLAlchemy has them.
        study: name of the study.
        may_begin: whether the database may be made, where it is a file.

    Raises:
        InputError: it cannot be opened; without the URL's password.
    """

    def __init__(self, url: str, study: str, *, may_begin: bool = True):
        self.study = study
        self.storage = open_storage(url, may_begin=may_begin)
        self.engine = self.storage.engine
        self._heard: dict[int, _Heard] = {}  # of workers elsewhere, by their trials

    def prepare(self, plan: dict, trials: list[dict]) -> None:
        """Write down what is to be done, all of it or nothing; more trials may be added later.

        Args:
            plan: what makes the study, as JSON would give it back.
            trials: for each its fixed parameters.

        Raises:
            InputError: the study was begun with another plan.
        """
        for attempt in range(3):
            try:
                with self.engine.begin() as connection:
                    if not self._is_begun(connection, plan):
                        connection.execute(_plans.insert().values(study=self.study, plan=json.dumps(plan)))
                    query = select(sqlalchemy.func.count()).where(_trials.c.study == self.study)
                    there = connection.scalar(query)
                    rows = [self._row(number, trials[number]) for number in range(there, len(trials))]
                    if rows:
                        connection.execute(_trials.insert(), rows)
                return
            except sqlalchemy.exc.IntegrityError:  # another worker was quicker
                if attempt == 2:
                    raise

    def require_plan(self, plan: dict) -> None:
        """Refuse a study that was not begun, or with another plan.

        Raises:
            InputError: it is such a one.
        """
        with self.engine.connect() as connection:
            if not self._is_begun(connection, plan):
                raise InputError(f"the sweep {self.study!r} was not begun in this database: nothing to report")

    def _is_begun(self, connection: sqlalchemy.Connection, plan: dict) -> bool:
        known = connection.scalar(select(_plans.c.plan).where(_plans.c.study == self.study))
        if known is not None and json.loads(known) != plan:
            raise InputError(_difference(self.study, json.loads(known), plan))
        return known is not None

    def _row(self, number: int, fixed: dict) -> dict:
        nobody = {"state": WAITING, "owner": "", "host": "", "process": "", "training": "", "beats": 0}
        return {"study": self.study, "number": number, "fixed": json.dumps(fixed)} | nobody

    def states(self) -> dict[int, str]:
        """Each trial's state by its number."""
        with self.engine.connect() as connection:
            query = select(_trials.c.number, _trials.c.state).where(_trials.c.study == self.study)
            return dict(sorted(tuple(row) for row in connection.execute(query)))

    def retry_failed(self) -> None:
        """Let trials that failed wait for a worker again."""
        with self.engine.begin() as connection:
            failed = and_(_trials.c.study == self.study, _trials.c.state == FAILED)
            connection.execute(_trials.update().where(failed).values(state=WAITING, owner=""))

    def claim(self, but: Collection[int] = ()) -> Claim | None:
        """Take the first trial that waits, or whose worker is dead, other than ``but``; None where there is none."""
        for row in self._rows(WAITING, RUNNING):
            if row.number in but:
                continue
            if row.state == RUNNING and not self._is_lost(row):
                continue
            owner = uuid.uuid4().hex
            values = {"owner": owner, "host": host(), "process": process_identity(os.getpid()), "training": ""}
            held = and_(_trials.c.state == row.state, _trials.c.owner == row.owner)
            if self._update(row.number, held, state=RUNNING, beats=0, **values):
                if row.state == RUNNING and row.host == host():
                    end_process(row.training)  # of a worker that was killed
                return Claim(row.number, owner, json.loads(row.fixed))
        return None

    def undecided(self) -> list[int]:
        """Trials of workers on other machines, of which it is not known yet whether they live."""
        return [row.number for row in self._rows(RUNNING) if row.host != host() and not self._is_heard(row)]

    def beat(self, claim: Claim) -> bool:
        """Give a sign of life; False where the trial has been given to another worker."""
        return self._update(claim.number, _trials.c.owner == claim.owner, beats=_trials.c.beats + 1)

    def tell_training(self, claim: Claim, pid: int) -> None:
        """Write down which process trains, for whoever takes over."""
        self._update(claim.number, _trials.c.owner == claim.owner, training=process_identity(pid))

    def release(self, claim: Claim, state: str) -> None:
        """Give a trial back: done, failed, or waiting for somebody to go on with it."""
        self._update(claim.number, _trials.c.owner == claim.owner, state=state, owner="", training="")

    def _rows(self, *states: str) -> list[sqlalchemy.Row]:
        query = select(_trials).where(_trials.c.study == self.study, _trials.c.state.in_(states))
        with self.engine.connect() as connection:
            return list(connection.execute(query.order_by(_trials.c.number)))

    def _update(self, number: int, condition: sqlalchemy.ColumnElement, **values) -> bool:
        own = and_(_trials.c.study == self.study, _trials.c.number == number, condition)
        with self.engine.begin() as connection:
            return connection.execute(_trials.update().where(own).values(**values)).rowcount == 1

    def _is_lost(self, row: sqlalchemy.Row) -> bool:
        if row.host == host():
            return not lives(row.process)
        return not self._is_heard(row) and time.monotonic() - self._heard[row.number].since > SILENCE

    def _is_heard(self, row: sqlalchemy.Row) -> bool:
        """Whether a worker elsewhere has given a sign of life while this one listened; clocks are never compared."""
        known = self._heard.get(row.number)
        if known is None or known.owner != row.owner:
            self._heard[row.number] = _Heard(row.owner, row.beats, time.monotonic(), lives=False)
        elif known.beats != row.beats:
            self._heard[row.number] = _Heard(row.owner, row.beats, time.monotonic(), lives=True)
        known = self._heard[row.number]
        return known.lives and time.monotonic() - known.since <= SILENCE


def open_storage(url: str, *, may_begin: bool = True) -> RDBStorage:
    """Optuna's storage in a database, and this module's tables in the same.

    Args:
        url: of the database, as SQLAlchemy has them.
        may_begin: whether the database may be made, where it is a file.

    Raises:
        InputError: it cannot be opened; without the URL's password.
    """
    try:
        parsed = sqlalchemy.engine.make_url(url)
    except sqlalchemy.exc.ArgumentError:
        raise InputError("--storage is no URL of a database: give sqlite:///FILE or postgresql://HOST/NAME") from None
    shown = parsed.render_as_string(hide_password=True)
    options = {}
    if parsed.get_backend_name() == "sqlite":
        if parsed.database in (None, "", ":memory:"):
            raise InputError(f"--storage {shown} is lost with its process: give sqlite:///FILE")
        if not may_begin and not Path(parsed.database).is_file():
            raise InputError(f"there is no {parsed.database}, so that no trial was begun: nothing to report")
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        options = {"connect_args": {"timeout": BUSY}}
    for attempt in range(5):
        try:
            storage = RDBStorage(url, engine_kwargs=options)
            if options:
                _lock_from_the_start(storage.engine)
            _metadata.create_all(storage.engine)
            return storage
        except ImportError as error:
            driver = getattr(error.__cause__ or error, "name", None) or parsed.get_driver_name()
            package = _DRIVERS.get(driver, driver)
            raise InputError(f"--storage {shown} needs {driver}: pip install {package}") from None
        except Exception as error:  # of any database's driver
            if attempt < 4 and ("exist" in str(error) or isinstance(error, sqlalchemy.exc.IntegrityError)):
                # Another worker makes the tables at the same time.
                time.sleep(0.2 * (attempt + 1))
                continue
            reason = str(getattr(error, "orig", None) or error).splitlines()[0]
            if parsed.password:
                reason = reason.replace(str(parsed.password), "***")
            raise InputError(f"cannot open --storage {shown}: {reason}") from None
    raise AssertionError("not reached")


def _lock_from_the_start(engine: sqlalchemy.Engine) -> None:
    """Let SQLite's transactions take their lock when they begin, when they can still wait for it."""

    @sqlalchemy.event.listens_for(engine, "connect")
    def connect(connection, _) -> None:
        connection.isolation_level = None  # Python's own BEGIN would come later

    @sqlalchemy.event.listens_for(engine, "begin")
    def begin(connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    engine.dispose()  # connections made before


def host() -> str:
    """This machine, and on Linux the container: where a process' number says which one it is."""
    try:
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def process_identity(pid: int) -> str:
    """A process' number and when it was started, since numbers are used again; empty where there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        started = f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {fields[19]}"
        return "" if fields[0] in "ZX" else f"{pid} {started}"
    except OSError:
        return "" if Path("/proc/self/stat").exists() else _told_by_ps(pid)


def _told_by_ps(pid: int) -> str:
    """The same where there is no /proc, as on macOS."""
    # The start in words, which otherwise depend on the caller's language and time zone.
    environment = os.environ | {"LC_ALL": "C", "TZ": "UTC"}
    command = ["ps", "-o", "stat=", "-o", "lstart=", "-p", str(pid)]
    answer = subprocess.run(command, capture_output=True, text=True, env=environment)
    state, _, started = answer.stdout.strip().partition(" ")
    return f"{pid} {started.strip()}" if state and state[0] not in "ZX" else ""


def lives(identity: str) -> bool:
    """Whether the process of this identity is running."""
    return bool(identity) and process_identity(int(identity.split()[0])) == identity


def end_process(identity: str) -> None:
    """End a process, if it lives, and wait for its end."""
    while lives(identity):
        with contextlib.suppress(ProcessLookupError):  # it ended by itself since it was looked for
            os.kill(int(identity.split()[0]), 9)  # checkpoints are whole at any moment
        time.sleep(0.05)


def _difference(study: str, known: dict, plan: dict) -> str:
    names = [name for name in {**known, **plan} if known.get(name) != plan.get(name)]
    told = "; ".join(f"{name} was {json.dumps(known.get(name))}, now {json.dumps(plan.get(name))}" for name in names)
    return f"the study {study!r} was begun with another config ({told}): give another --output, or --storage"
