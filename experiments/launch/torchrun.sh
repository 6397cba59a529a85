#!/usr/bin/env bash
# Train on one or several machines with torchrun. Run the same command on each machine:
#
#   NODES=2 RENDEZVOUS=first-machine:29400 experiments/launch/torchrun.sh classification.fit --config … --data.root …
#
# All machines must share the runs folder. A failed process is restarted; on a failed machine, run the same command
# again. The other machines wait for it, then all resume from the last checkpoint. --checkpoint_every_n_steps also writes
# checkpoints within an epoch. To stop the run, send SIGTERM or Ctrl-C on every machine: it writes a checkpoint after its
# next step. A running validation is finished first, within the 30 s that torchrun allows.
#
#   NODES       number of machines (default: 1)
#   RENDEZVOUS  host name and port of one machine (default: localhost:29400)
#   PROCESSES   processes on this machine (default: one for each GPU, or 1)
#   RESTARTS    failures before the launcher gives up (default: 3)
set -uo pipefail

if (($# == 0)); then
    sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' "$0" >&2
    exit 2
fi
nodes=${NODES:-1}
processes=${PROCESSES:-$(python -c 'import torch; print(max(1, torch.cuda.device_count()))')}

# This loop restarts torchrun. Its own --max_restarts gives up when the machine of the rendezvous fails.
stopping= agent=
trap 'stopping=1' INT # a terminal sends it to torchrun as well
trap 'stopping=1; [[ $agent ]] && kill -TERM $agent' TERM
for ((failures = 0; ; failures++)); do
    python -m torch.distributed.run \
        --nnodes "$nodes" --nproc_per_node "$processes" --max_restarts 0 \
        --rdzv_backend c10d --rdzv_endpoint "${RENDEZVOUS:-localhost:29400}" --rdzv_id "mobile-former-$1" \
        -m "$@" --ckpt_path auto --trainer.num_nodes "$nodes" --trainer.devices "$processes" &
    agent=$!
    wait $agent
    status=$?
    if [[ $stopping ]]; then
        wait $agent # the signal ended the first wait
        exit $?
    fi
    if ((status == 0 || failures >= ${RESTARTS:-3})); then
        exit $status
    fi
    echo "torchrun.sh: failed with status $status, restarting ($((failures + 1)) of ${RESTARTS:-3})" >&2
    agent=
    sleep 3
    if [[ $stopping ]]; then
        exit 143
    fi
done
