"""The launch scripts: on several machines and under SLURM."""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from experiments.storm.checks import same
from mobile_former.training.run.folder import RunFolder
from tests.conftest import ROOT
from tests.detection.conftest import write_shapes
from tests.experiments.sweep.conftest import listed, write_config
from tests.interrupted import OPTIONS, last, wait_for, weights

LAUNCH = ROOT / "experiments" / "launch"


def environment(**more):
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # so that `python` is this one
    return os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | more


def agent(folder, data, port):
    """Start the launcher of one of two machines."""
    command = [LAUNCH / "torchrun.sh", "classification.fit", *OPTIONS, "--data.root", data]
    options = ("--data.batch_size", "2", "--trainer.accelerator", "cpu")
    more = {"NODES": "2", "PROCESSES": "1", "RENDEZVOUS": f"localhost:{port}"}
    log = (folder / "log.txt").open("a")
    return subprocess.Popen(
        [*map(str, command), *options], cwd=folder, env=environment(**more), stdout=log, stderr=log,
        start_new_session=True,
    )  # fmt: skip


def kill(machine):
    """Kill every process of a machine, as in a power cut (torchrun's workers have their own process groups)."""
    processes = [machine.pid]
    for process in processes:
        for thread in Path(f"/proc/{process}/task").iterdir():
            processes += map(int, (thread / "children").read_text().split())
    for process in processes:
        os.kill(process, signal.SIGKILL)
    machine.wait()


def end_well(agents, log):
    """Wait until all agents have ended without an error."""
    try:
        assert [process.wait(timeout=400) for process in agents] == [0, 0], log.read_text()
    except subprocess.TimeoutExpired:
        states = [process.poll() for process in agents]
        for process in agents:
            if process.poll() is None:
                kill(process)
        pytest.fail(f"not ended, states {states}:\n{log.read_text()}")


def free_port():
    with socket.socket() as server:
        server.bind(("localhost", 0))
        return server.getsockname()[1]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("killed", [0, 1])  # one of them hosts the rendezvous
def test_one_of_two_machines_dies_and_returns_without_loss(killed, two_colours, tmp_path):
    undisturbed, disturbed = tmp_path / "not disturbed", tmp_path / "disturbed"
    for folder in (undisturbed, disturbed):
        folder.mkdir()
    port = free_port()
    agents = [agent(undisturbed, two_colours, port) for _ in range(2)]
    end_well(agents, undisturbed / "log.txt")

    port = free_port()
    agents = [agent(disturbed, two_colours, port) for _ in range(2)]
    log = disturbed / "log.txt"
    wait_for(lambda: last(disturbed).is_file(), agents[0])
    kill(agents[killed])
    agents[killed] = agent(disturbed, two_colours, port)
    end_well(agents, log)
    assert log.read_text().count("images a step") == 2, "the run should have started twice"
    assert same(weights(disturbed), weights(undisturbed))


def test_the_launcher_without_arguments_prints_its_usage(tmp_path):
    result = subprocess.run([LAUNCH / "torchrun.sh"], env=environment(), capture_output=True, text=True)
    assert result.returncode == 2
    assert "NODES=2 RENDEZVOUS=" in result.stderr
    assert "set -" not in result.stderr


@pytest.fixture
def slurm(tmp_path):
    """Stand-ins for SLURM's programs: srun stops a job's first run with SIGTERM, scontrol records its arguments."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "srun").write_text("""#!/usr/bin/env bash
shift
"$@" &
if [ ! -e stopped ]; then
    touch stopped
    while [ ! -e "$CHECKPOINT" ]; do sleep 0.05; done
    kill -TERM $!
fi
wait $!
""")
    (programs / "scontrol").write_text('#!/usr/bin/env bash\necho "$@" >> scontrol.txt\n')
    for program in programs.iterdir():
        program.chmod(0o755)
    job = {"SLURM_JOB_NUM_NODES": "1", "SLURM_NTASKS_PER_NODE": "1", "SLURM_JOB_ID": "17", "SLURM_NTASKS": "1"}
    task = {"SLURM_JOB_NAME": "x", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
    checkpoint = "runs/classification/x/checkpoints/last.ckpt"
    variables = environment(**job, **task, CHECKPOINT=checkpoint)
    return variables | {"PATH": f"{programs}:{variables['PATH']}"}


@pytest.mark.slow
def test_a_job_requeues_itself_and_resumes(slurm, two_colours, tmp_path):
    command = [LAUNCH / "slurm.sbatch", "classification.fit", *OPTIONS, "--data.root", two_colours]
    runs = []
    for _ in range(2):
        runs.append(
            subprocess.run(
                list(map(str, command)), cwd=tmp_path, env=slurm, capture_output=True, text=True, timeout=200
            )
        )
    assert runs[0].returncode == 143, runs[0].stderr
    assert (tmp_path / "scontrol.txt").read_text() == "requeue 17\n"
    assert runs[1].returncode == 0, runs[1].stderr
    assert weights(tmp_path)  # of all 40 steps


@pytest.mark.slow
def test_slurm_options_that_lightning_refuses_are_one_line(slurm, tmp_path):
    environment = slurm | {"SLURM_NTASKS": "2", "SLURM_NODELIST": "localhost"}
    del environment["SLURM_NTASKS_PER_NODE"]
    command = [sys.executable, "-m", "classification.fit", "--name", "x"]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100)
    assert result.returncode == 1
    assert re.fullmatch(r"error: cannot train: .*--ntasks-per-node=2.*\n", result.stderr)
    assert not list(tmp_path.glob("runs/*/*"))


@pytest.mark.slow
@pytest.mark.parametrize("task", ["classification", "detection"])
def test_the_signal_with_which_lightning_requeues_a_job_loses_no_step(task, slurm, two_colours, tmp_path):
    """Lightning writes hpc_ckpt_1.ckpt, and puts all tasks of an array back into the queue."""
    options = ("--data.root", two_colours)
    if task == "detection":
        options = (
            "--config", "finetune.yaml", "--model.name", "e2e_mf_26m", "--data.short_sides", "[64]", "--name", "x",
            "--data.short_side", "64", "--data.root", write_shapes(tmp_path / "shapes", train=22, val=3),
        )  # fmt: skip
    command = [sys.executable, "-m", f"{task}.fit", *(OPTIONS if task == "classification" else ()), *options]
    command += ["--trainer.max_epochs", "2", "--ckpt_path", "auto", "--trainer.log_every_n_steps", "1"]
    array = {"SLURM_ARRAY_JOB_ID": "16", "SLURM_ARRAY_TASK_ID": "1", "SLURM_NODELIST": "localhost"}
    folder = RunFolder(tmp_path / "runs" / task / "x")
    environment = slurm | array

    def start():
        return subprocess.Popen(
            list(map(str, command)), cwd=tmp_path, env=environment, stdout=-1, stderr=subprocess.STDOUT, text=True
        )

    job = start()
    wait_for(lambda: folder.metrics_csv.is_file() and len(folder.history()) >= 2, job)
    job.send_signal(signal.SIGUSR1)
    output, _ = job.communicate(timeout=120)
    assert job.returncode == 128 + signal.SIGUSR1, output
    assert (tmp_path / "scontrol.txt").read_text() == "requeue 16_1\n"
    assert not list(folder.path.glob("hpc_ckpt_*"))
    steps = len([row for row in folder.history() if "lr" in row])
    assert torch.load(folder.last, weights_only=True)["global_step"] == steps

    job = start()
    output, _ = job.communicate(timeout=200)
    assert job.returncode == 0, output
    assert f"last.ckpt, step {steps}\n" in output
    rows = [row["step"] for row in folder.history() if "lr" in row]
    assert rows == list(range(len(rows)))


@pytest.mark.slow
def test_a_job_of_an_array_is_a_worker_of_a_sweep_that_requeues_itself_and_resumes(slurm, tmp_path):
    config = write_config(tmp_path / "rates.yaml", trials=2)
    command = [LAUNCH / "slurm_array.sbatch", "tests.experiments.stand_in", "1", "5", "--config", config]
    waits = {"STAND_IN_LIST": str(tmp_path / "list"), "STAND_IN_WAITS": "trial-0"}
    checkpoint = {"CHECKPOINT": "runs/sweep/rates/classification/trial-0/checkpoints/last.ckpt"}
    runs = []
    for more in (waits | checkpoint, waits | {"STAND_IN_WAITS": ""}):
        runs.append(
            subprocess.run(
                list(map(str, command)), cwd=tmp_path, env=slurm | more, capture_output=True, text=True, timeout=200
            )
        )
    assert runs[0].returncode == 143, runs[0].stderr
    assert (tmp_path / "scontrol.txt").read_text() == "requeue 17\n"
    assert runs[1].returncode == 0, runs[1].stderr
    assert "trial 0 resumes from its last checkpoint" in runs[1].stdout
    assert [line for line in listed(tmp_path) if "finished" in line] == ["trial-0 finished", "trial-1 finished"]
