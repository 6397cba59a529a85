#!/usr/bin/env bash
# 2026-11-29, optuna 5.0.0 over SQLite (SQLAlchemy 2.1.9), Linux.
# Guess: study.ask() hands each waiting trial (enqueue_trial) to one worker, because the storage locks its database.
# What happens: eight processes that share one SQLite file take some waiting trials two or more times. Such a
#   point is evaluated twice, and the later result is refused. With the file-based JournalStorage, or if
#   every transaction of the engine begins with BEGIN IMMEDIATE, each trial is taken once.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "optuna==5.0.0" "sqlalchemy==2.1.9"
cat > "$folder/ask.py" <<'PYTHON'
import collections
import multiprocessing
import sys

import optuna
import sqlalchemy
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend

WORKERS, TRIALS = 8, 60


def storage_of(kind, folder):
    if kind == "journal":
        return JournalStorage(JournalFileBackend(f"{folder}/journal.log"))
    storage = RDBStorage(f"sqlite:///{folder}/{kind}.db", engine_kwargs={"connect_args": {"timeout": 120}})
    if kind == "immediate":
        sqlalchemy.event.listen(storage.engine, "connect", lambda c, _: setattr(c, "isolation_level", None))
        sqlalchemy.event.listen(storage.engine, "begin", lambda c: c.exec_driver_sql("BEGIN IMMEDIATE"))
    return storage


def work(kind, folder, barrier, taken):
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.load_study(study_name="s", storage=storage_of(kind, folder))
    barrier.wait()
    for _ in range(TRIALS):
        trial = study.ask()
        if "point" not in trial.user_attrs:  # no waiting trial is left
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            return
        taken.put(trial.number)
        try:
            study.tell(trial, 0.0)
        except Exception:  # another worker has told it
            pass


def repeated(kind, folder):
    study = optuna.create_study(study_name="s", storage=storage_of(kind, folder))
    for point in range(TRIALS):
        study.enqueue_trial({"x": point}, user_attrs={"point": point})
    taken, barrier = multiprocessing.Queue(), multiprocessing.Barrier(WORKERS)
    workers = [multiprocessing.Process(target=work, args=(kind, folder, barrier, taken)) for _ in range(WORKERS)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    counts = collections.Counter()
    while not taken.empty():
        counts[taken.get()] += 1
    return sum(count > 1 for count in counts.values()), len(counts)


if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    print("optuna", optuna.__version__, "sqlalchemy", sqlalchemy.__version__)
    results = {kind: repeated(kind, sys.argv[1]) for kind in ("sqlite", "immediate", "journal")}
    for kind, (twice, of) in results.items():
        print(f"{kind}: {twice} of {of} waiting trials were taken more than once")
    as_described = results["sqlite"][0] > 0 and results["immediate"][0] == results["journal"][0] == 0
    sys.exit(0 if as_described else 1)
PYTHON
"$folder/venv/bin/python" "$folder/ask.py" "$folder"
