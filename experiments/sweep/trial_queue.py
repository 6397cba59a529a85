"""The queue of a sweep's trials, a database table that all workers share.

Each trial belongs to at most one worker (process that runs trials) at a time. If that worker dies, another worker takes
the trial.
"""

import json
import os
import time
import uuid
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import sqlalchemy
from optuna.storages import RDBStorage
from sqlalchemy import Column, Integer, MetaData, String, Table, Text, and_, select

from experiments.sweep.processes import end_process, host, lives, process_identity
from mobile_former.errors import InputError, first_line

BEAT = 5.0  # seconds between two heartbeats of a worker
SILENCE = 120.0  # seconds without a heartbeat after which a worker on another machine counts as dead
BUSY = 600  # seconds to wait for SQLite's lock, which is held for milliseconds

WAITING, RUNNING, DONE, FAILED = "waiting", "running", "done", "failed"

# The pip package of each database driver that SQLAlchemy imports.
_DRIVERS = {"psycopg": "'psycopg[binary]'", "psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}

_metadata = MetaData()
# A trial changes its owner by a single UPDATE that names the previous owner. It succeeds for exactly one worker in any
# database. (Optuna reads a trial's state before writing it: with SQLite, two workers can take the same trial.)
_trials = Table(
    "mobile_former_trials",
    _metadata,
    Column("study", String(200), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("fixed", Text, nullable=False),  # JSON: the parameters of a grid point
    Column("state", String(16), nullable=False, default=WAITING),
    Column("owner", String(64), nullable=False, default=""),  # a unique name for each claim
    Column("host", Text, nullable=False, default=""),
    Column("process", Text, nullable=False, default=""),  # identity of the worker, see process_identity
    Column("training", Text, nullable=False, default=""),  # identity of its training process
    Column("beats", Integer, nullable=False, default=0),  # heartbeats so far
)
_plans = Table(
    "mobile_former_plans",
    _metadata,
    Column("study", String(200), primary_key=True),
    Column("plan", Text, nullable=False),  # JSON
)


class Claim(NamedTuple):
    """The right of this worker to run a trial.

    Attributes:
        number: the number of the trial.
        owner: a name that no other claim has.
        fixed: dictionary with all hyperparameters of the trial if the sweep is a grid, otherwise empty.
    """

    number: int
    owner: str
    fixed: dict


class _Heartbeat(NamedTuple):
    """The last heartbeat that this process has seen from a worker on another machine.

    Attributes:
        owner: the name of the worker's claim.
        beats: the number of heartbeats that the worker has sent.
        since: the time at which this process first saw that value of ``beats``, in seconds of its own clock.
        lives: whether a heartbeat arrived while this process was watching.
    """

    owner: str
    beats: int
    since: float
    lives: bool


class TrialQueue:
    """The queue of the trials of one sweep.

    Args:
        url: the SQLAlchemy URL of the database.
        study: the name of the sweep in the database, where Optuna stores it as a study.
        may_begin: whether a missing SQLite file may be created. False: a missing file is an error.

    Raises:
        InputError: the database cannot be opened. The message hides the password in the URL.
    """

    def __init__(self, url: str, study: str, *, may_begin: bool = True):
        self.study = study
        self.storage = open_storage(url, may_begin=may_begin)
        self.engine = self.storage.engine
        self._heartbeats: dict[int, _Heartbeat] = {}  # of workers on other machines, by trial

    def prepare(self, plan: dict, trials: list[dict]) -> None:
        """Record the sweep's config and its trials in the database, in one transaction.

        Trials that the queue already has are not changed. A later call may add more trials.

        Args:
            plan: settings of the sweep as returned by :func:`~experiments.sweep.plan.identity`. All values have types
                that JSON preserves.
            trials: dictionaries with the fixed hyperparameters of each trial, as returned by
                :meth:`~experiments.sweep.plan.Plan.points`.

        Raises:
            InputError: the sweep was begun with another config.
        """
        for attempt in range(3):
            try:
                with self.engine.begin() as connection:
                    if not self._is_begun(connection, plan):
                        connection.execute(_plans.insert().values(study=self.study, plan=json.dumps(plan)))
                    query = select(sqlalchemy.func.count()).where(_trials.c.study == self.study)
                    count = connection.scalar(query)
                    missing = [(number, json.dumps(trials[number])) for number in range(count, len(trials))]
                    rows = [{"study": self.study, "number": number, "fixed": fixed} for number, fixed in missing]
                    if rows:
                        connection.execute(_trials.insert(), rows)
                return
            except sqlalchemy.exc.IntegrityError:  # another worker was faster
                if attempt == 2:
                    raise

    def require_plan(self, plan: dict) -> None:
        """Check that the sweep is in the database and was begun with this config.

        Args:
            plan: settings of the sweep as returned by :func:`~experiments.sweep.plan.identity`.

        Raises:
            InputError: the sweep is not in the database, or was begun with another config.
        """
        with self.engine.connect() as connection:
            if not self._is_begun(connection, plan):
                raise InputError(f"the sweep {self.study!r} was not begun in this database: there is nothing to report")

    def _is_begun(self, connection: sqlalchemy.Connection, plan: dict) -> bool:
        text = connection.scalar(select(_plans.c.plan).where(_plans.c.study == self.study))
        known = plan if text is None else json.loads(text)
        if names := [name for name in {**known, **plan} if known.get(name) != plan.get(name)]:
            changes = [f"{name} was {json.dumps(known.get(name))}, now {json.dumps(plan.get(name))}" for name in names]
            raise InputError(
                f"the study {self.study!r} was begun with another config ({'; '.join(changes)}): give another --output "
                "or --storage"
            )
        return text is not None

    def states(self) -> dict[int, str]:
        """Return a dictionary from a trial's number to its state: "waiting", "running", "done" or "failed"."""
        with self.engine.connect() as connection:
            query = select(_trials.c.number, _trials.c.state).where(_trials.c.study == self.study)
            return dict(sorted(tuple(row) for row in connection.execute(query)))

    def retry_failed(self) -> None:
        """Set the state of all failed trials to "waiting", so that they are run again."""
        with self.engine.begin() as connection:
            failed = and_(_trials.c.study == self.study, _trials.c.state == FAILED)
            connection.execute(_trials.update().where(failed).values(state=WAITING, owner=""))

    def claim(self, exclude: Collection[int] = ()) -> Claim | None:
        """Claim the first trial that is waiting or whose worker is dead.

        Args:
            exclude: the numbers of trials to skip.

        Returns:
            The claim, or None if there is no such trial.
        """
        for row in self._rows(WAITING, RUNNING):
            if row.number in exclude or (row.state == RUNNING and not self._is_lost(row)):
                continue
            owner = uuid.uuid4().hex
            values = {"owner": owner, "host": host(), "process": process_identity(os.getpid()), "training": ""}
            held = and_(_trials.c.state == row.state, _trials.c.owner == row.owner)
            if self._update(row.number, held, state=RUNNING, beats=0, **values):
                if row.state == RUNNING and row.host == host():
                    end_process(row.training)  # it may outlive a killed worker
                return Claim(row.number, owner, json.loads(row.fixed))
        return None

    def undecided(self) -> list[int]:
        """Return the numbers of running trials whose worker may be dead.

        Such a worker is on another machine and has not sent a heartbeat recently.
        """
        return [row.number for row in self._rows(RUNNING) if row.host != host() and not self._is_alive(row)]

    def beat(self, claim: Claim) -> bool:
        """Send a heartbeat. Return False if the trial now belongs to another worker, otherwise True."""
        return self._update(claim.number, _trials.c.owner == claim.owner, beats=_trials.c.beats + 1)

    def record_training(self, claim: Claim, pid: int) -> None:
        """Record the process that trains a trial.

        If this worker dies, the worker that takes over the trial can end that process.
        """
        self._update(claim.number, _trials.c.owner == claim.owner, training=process_identity(pid))

    def release(self, claim: Claim, state: str) -> None:
        """Give up the claim to a trial, and set the trial's state to "done", "failed" or "waiting"."""
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
        return not self._is_alive(row) and time.monotonic() - self._heartbeats[row.number].since > SILENCE

    def _is_alive(self, row: sqlalchemy.Row) -> bool:
        """Return whether a worker on another machine sent a heartbeat recently.

        Only heartbeats that arrive while this process is watching count. Their times are read from this process's
        clock, so the clocks of two machines are never compared.
        """
        known = self._heartbeats.get(row.number)
        if known is None or known.owner != row.owner:
            self._heartbeats[row.number] = _Heartbeat(row.owner, row.beats, time.monotonic(), lives=False)
        elif known.beats != row.beats:
            self._heartbeats[row.number] = _Heartbeat(row.owner, row.beats, time.monotonic(), lives=True)
        known = self._heartbeats[row.number]
        return known.lives and time.monotonic() - known.since <= SILENCE


def open_storage(url: str, *, may_begin: bool = True) -> RDBStorage:
    """Open Optuna's storage in a database, add the queue's tables to this database, and return the storage.

    Args:
        url: the SQLAlchemy URL of the database.
        may_begin: whether a missing SQLite file may be created. False: a missing file is an error.

    Raises:
        InputError: the database cannot be opened. The message hides the password in the URL.
    """
    try:
        parsed = sqlalchemy.engine.make_url(url)
    except sqlalchemy.exc.ArgumentError:
        raise InputError("--storage is not a database URL: give sqlite:///FILE or postgresql://HOST/NAME") from None
    shown = parsed.render_as_string(hide_password=True)
    options = {}
    if parsed.get_backend_name() == "sqlite":
        if parsed.database in (None, "", ":memory:"):
            raise InputError(f"--storage {shown} is lost when the process ends: give sqlite:///FILE")
        if not may_begin and not Path(parsed.database).is_file():
            raise InputError(f"{parsed.database} does not exist: no trial was begun, and there is nothing to report")
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        options = {"connect_args": {"timeout": BUSY}}
    for pause in (0.2, 0.4, 0.6, 0.8, None):  # seconds before the next attempt; None after the last
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
        except Exception as error:  # each driver has its own exceptions
            if pause and ("exist" in str(error) or isinstance(error, sqlalchemy.exc.IntegrityError)):
                time.sleep(pause)  # another worker is creating the tables at the same time
                continue
            # Cut the message late: half a password could not be hidden.
            reason = first_line(getattr(error, "orig", None) or error, longest=10_000)
            if parsed.password:
                reason = reason.replace(str(parsed.password), "***")
            raise InputError(f"cannot open --storage {shown}: {reason}") from None


def _lock_from_the_start(engine: sqlalchemy.Engine) -> None:
    """Make each SQLite transaction take the write lock when it begins.

    If a transaction asks for the lock only later, SQLite fails instead of waiting for the lock.
    """

    @sqlalchemy.event.listens_for(engine, "connect")
    def connect(connection, _) -> None:
        connection.isolation_level = None  # Python would send its own BEGIN later

    @sqlalchemy.event.listens_for(engine, "begin")
    def begin(connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    engine.dispose()  # close connections that were opened without the events
