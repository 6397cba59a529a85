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
from mobile_former.training.run.lock import GRACE, HEARTBEAT

optuna.logging.set_verbosity(optuna.logging.ERROR)  # the worker prints one line for each trial
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
warnings.filterwarnings("ignore", message="Heartbeat of storage is supposed")  # the worker starts Optuna's heartbeat

SQLITE = {"timeout": 600, "isolation_level": None}  # wait for the lock; send no BEGIN but those below
# Statements that wait for a lock, which ends with the connection. A year: with -1, MariaDB gives no lock.
_LOCKS = {"postgresql": "SELECT pg_advisory_lock(1108)", "mysql": "SELECT GET_LOCK('mobile_former', 31536000)"}
_PACKAGES = {"psycopg": "'psycopg[binary]'", "psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}  # of drivers
retry = RetryHeartbeatStaleTrialCallback(inherit_intermediate_values=True)


@contextlib.contextmanager
def alone(url: str) -> Iterator[None]:
    """Let only one worker at a time run the body of the ``with`` statement, on all machines with this database."""
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
    """Open the database ``url`` as Optuna's storage with heartbeats. ``may_begin``: create a missing SQLite file.

    Raises:
        InputError: the database cannot be opened. The message hides the password in the URL.
    """
    try:
        parsed = sqlalchemy.make_url(url)
    except sqlalchemy.exc.ArgumentError:
        raise InputError("--storage is not a database URL: give sqlite:///FILE or postgresql://HOST/NAME") from None
    shown, sqlite = f"--storage {parsed.render_as_string()}", parsed.get_backend_name() == "sqlite"
    if sqlite:
        if parsed.database in (None, "", ":memory:"):
            raise InputError(f"{shown} is lost when the process ends: give sqlite:///FILE")
        if not may_begin and not Path(parsed.database).is_file():
            raise InputError(f"{parsed.database} does not exist: no trial was begun, and there is nothing to report")
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    elif parsed.get_backend_name() not in _LOCKS:
        raise InputError(f"{shown} is not a supported database: give sqlite, postgresql or mysql")
    options = {"heartbeat_interval": HEARTBEAT, "grace_period": GRACE, "heartbeat_stale_trial_callback": retry}
    try:
        with alone(url):
            storage = RDBStorage(url, {"connect_args": SQLITE} if sqlite else None, **options)
            if sqlite:  # a transaction that asks for the write lock later fails instead of waiting
                sqlalchemy.event.listen(storage.engine, "begin", lambda each: each.exec_driver_sql("BEGIN IMMEDIATE"))
            return storage
    except ImportError as error:
        driver = getattr(error.__cause__ or error, "name", None) or parsed.get_driver_name()
        raise InputError(f"{shown} needs {driver}: pip install {_PACKAGES.get(driver, driver)}") from None
    except Exception as error:  # each driver has its own exceptions
        # Cut the message late: half a password could not be hidden.
        reason = first_line(getattr(error, "orig", None) or error, longest=10_000)
        reason = reason.replace(str(parsed.password), "***") if parsed.password else reason
        raise InputError(f"cannot open {shown}: {reason}") from None
