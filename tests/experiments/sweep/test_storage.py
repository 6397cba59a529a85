"""The database of a sweep."""

import pytest
import sqlalchemy

from experiments.sweep.storage import open_storage
from mobile_former import InputError


def test_a_urls_password_is_never_printed():
    with pytest.raises(InputError) as error:
        open_storage("postgresql+psycopg://me:geheim@127.0.0.1:1/none")
    assert "geheim" not in str(error.value)
    assert "127.0.0.1" in str(error.value)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("postgresql+pg8000://me:geheim@host/none", "needs pg8000: pip install pg8000"),
        ("study.db", "is not a database URL"),
        ("sqlite://", "is lost when the process ends"),
        ("oracle://me@host/none", "is not a supported database: give sqlite, postgresql or mysql"),
    ],
)
def test_a_url_that_cannot_be_used_is_reported_in_one_line(url, message):
    with pytest.raises(InputError, match=message):
        open_storage(url)


def test_a_transaction_over_sqlite_has_the_write_lock_from_its_start(tmp_path):
    first, second = (open_storage(f"sqlite:///{tmp_path}/study.db").engine for _ in range(2))
    with first.connect() as connection:
        connection.execute(sqlalchemy.text("SELECT 1"))
        with second.connect() as other:
            other.connection.execute("PRAGMA busy_timeout = 1")
            with pytest.raises(sqlalchemy.exc.OperationalError, match="locked"):
                other.execute(sqlalchemy.text("SELECT 1"))
