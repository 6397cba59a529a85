#!/usr/bin/env bash
# Training on one or several machines by torchrun. Run the same line on each of them:
#
#   NODES=2 RENDEZVOUS=first-machine:29400 experiments/launch/torchrun.sh classification.fit --config … --data.root …
#
# All machines see the same runs folder. Where a process or a machine fails, the others wait until it is back (the same
# line again on it), and all go on from the last checkpoint: with --checkpoint_every_n_steps, not even an epoch is lost.
# SIGTERM or Ctrl-C on every machine end the run after its next step, with a checkpoint (a validation that has begun is
# finished first, within the 30 s that torchrun gives it).
#
#   NODES       machines (default: 1)
#   RENDEZVOUS  name and port of one of them (default: localhost:29400)
#   PROCESSES   on this machine (default: one for each GPU, or 1)
#   RESTARTS    failures after which to give up (default: 3)
set -uo pipefail

if (($# == 0)); then
    sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' "$0" >&2
    exit 2
fi
nodes=${NODES:-1}
processes=${PROCESSES:-$(python -c 'import torch; print(max(1, torch.cuda.device_count()))')}

# Starting again is left to this loop, not to torchrun's own --max_restarts: that one ends where the machine of the
# rendezvous fails.
told= agent=
trap 'told=1' INT # of a terminal: torchrun gets it as well
trap 'told=1; [[ $agent ]] && kill -TERM $agent' TERM
for ((failures = 0; ; failures++)); do
    python -m torch.distributed.run \
        --nnodes "$nodes" --nproc_per_node "$processes" --max_restarts 0 \
        --rdzv_backend c10d --rdzv_endpoint "${RENDEZVOUS:-localhost:29400}" --rdzv_id "mobile-former-$1" \
        -m "$@" --ckpt_path auto --trainer.num_nodes "$nodes" --trainer.devices "$processes" &
    agent=$!
    wait $agent
    status=$?
    if [[ $told ]]; then
        wait $agent # the first wait ended with the signal
        exit $?
    fi
    if ((status == 0 || failures >= ${RESTARTS:-3})); then
        exit $status
    fi
    echo "torchrun.sh: failed with status $status; starting again ($((failures + 1)) of ${RESTARTS:-3})" >&2
    agent=
    sleep 3
    if [[ $told ]]; then
        exit 143
    fi
done
