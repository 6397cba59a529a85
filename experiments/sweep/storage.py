"""The database of a sweep: Optuna's storage, and a lock for all workers that use it."""

import contextlib
import fcntl
import warnings
from collections.abc import Iterator
from pathlib import Path

import optuna
import sqlalchemy
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback

from mobile_former.errors import InputError, first_line

optuna.logging.set_verbosity(optuna.logging.ERROR)  # the worker prints one line for each trial
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
warnings.filterwarnings("ignore", message="Heartbeat of storage is supposed")  # the worker starts Optuna's heartbeat

HEARTBEAT = 10  # seconds between two heartbeats of a running trial
GRACE = 60  # seconds without a heartbeat after which another worker takes the trial
BUSY = 600  # seconds to wait for SQLite's lock, which is held for milliseconds

# Statements that wait for a lock of the whole database. It ends with the connection, also if the worker is killed.
_LOCKS = {"postgresql": "SELECT pg_advisory_lock(1108)", "mysql": "SELECT GET_LOCK('mobile_former', -1)"}
# The pip package of each database driver that SQLAlchemy imports.
_DRIVERS = {"psycopg": "'psycopg[binary]'", "psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}
retry = RetryHeartbeatStaleTrialCallback(inherit_intermediate_values=True)


@contextlib.contextmanager
def alone(url: str) -> Iterator[None]:
    """Let one worker at a time run the body of the ``with`` statement, on all machines that use the database."""
    parsed = sqlalchemy.make_url(url)
    if parsed.get_backend_name() == "sqlite":  # for one machine
        with open(f"{parsed.database}.lock", "a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
    else:
        with sqlalchemy.create_engine(parsed, poolclass=sqlalchemy.NullPool).connect() as connection:
            connection.execute(sqlalchemy.text(_LOCKS[parsed.get_backend_name()]))
            yield


def open_storage(url: str, *, may_begin: bool = True) -> RDBStorage:
    """Open Optuna's storage in a database, with heartbeats and repetition of trials whose worker died.

    Args:
        url: the SQLAlchemy URL of the database.
        may_begin: whether a missing SQLite file may be created. False: a missing file is an error.

    Raises:
        InputError: the database cannot be opened. The message hides the password in the URL.
    """
    try:
        parsed = sqlalchemy.make_url(url)
    except sqlalchemy.exc.ArgumentError:
        raise InputError("--storage is not a database URL: give sqlite:///FILE or postgresql://HOST/NAME") from None
    shown, sqlite = f"--storage {parsed.render_as_string()}", parsed.get_backend_name() == "sqlite"
    if not sqlite and parsed.get_backend_name() not in _LOCKS:
        raise InputError(f"{shown} is not a supported database: give sqlite, postgresql or mysql")
    if sqlite:
        if parsed.database in (None, "", ":memory:"):
            raise InputError(f"{shown} is lost when the process ends: give sqlite:///FILE")
        if not may_begin and not Path(parsed.database).is_file():
            raise InputError(f"{parsed.database} does not exist: no trial was begun, and there is nothing to report")
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    options = {"heartbeat_interval": HEARTBEAT, "grace_period": GRACE, "heartbeat_stale_trial_callback": retry}
    try:
        with alone(url):
            storage = RDBStorage(url, {"connect_args": {"timeout": BUSY}} if sqlite else None, **options)
            if sqlite:
                _lock_from_the_start(storage.engine)
            return storage
    except ImportError as error:
        driver = getattr(error.__cause__ or error, "name", None) or parsed.get_driver_name()
        raise InputError(f"{shown} needs {driver}: pip install {_DRIVERS.get(driver, driver)}") from None
    except Exception as error:  # each driver has its own exceptions
        # Cut the message late: half a password could not be hidden.
        reason = first_line(getattr(error, "orig", None) or error, longest=10_000)
        reason = reason.replace(str(parsed.password), "***") if parsed.password else reason
        raise InputError(f"cannot open {shown}: {reason}") from None


def _lock_from_the_start(engine: sqlalchemy.Engine) -> None:
    """Make SQLite's transactions take the write lock when they begin. If they ask for it later, SQLite may fail."""

    @sqlalchemy.event.listens_for(engine, "connect")
    def connect(connection, _) -> None:
        connection.isolation_level = None  # Python would send its own BEGIN later

    @sqlalchemy.event.listens_for(engine, "begin")
    def begin(connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    engine.dispose()  # close connections that were opened without the events
