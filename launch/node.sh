#!/usr/bin/env bash
# One node's part of a job on several nodes: run it once on every node, in the repository, with the same arguments.
#
#   node.sh launch/pretrain.py CONFIG [key=value …]
#
#   NODES        names or addresses of all nodes, in the same order everywhere
#   NODE_RANK    this node's place in NODES, from 0
#   PROCESSES    processes a node: one a GPU, or as many as should share its cores
#   MASTER_ADDR  where rank 0 listens; default: the first of NODES
#   MASTER_PORT  default: 29500
#   DEEPSPEED    the launcher; default: deepspeed
#
# SIGTERM and SIGUSR1 ask the job to save and leave. The status is then 75: run the same again to go on.
set -u
: "${NODES:?names of all nodes}" "${NODE_RANK:?place of this node in NODES, from 0}" "${PROCESSES:?processes a node}"
if [ $# -eq 0 ]; then
  echo "usage: node.sh SCRIPT CONFIG [key=value …]" >&2
  exit 2
fi

hostfile=$(mktemp)
trap 'rm -f "$hostfile"' EXIT
for node in $NODES; do
  echo "$node slots=$PROCESSES"
done >"$hostfile"

# Every training process acts on SIGUSR1; the launchers above them would die of it, and of SIGTERM they would end the
# processes within 30 s. So the launchers ignore SIGUSR1, which they pass on to their children as ignored until these listen,
# and whatever this script is asked with becomes a SIGUSR1 to all.
set -m
(
  trap '' USR1
  exec "${DEEPSPEED:-deepspeed}" --hostfile "$hostfile" --no_ssh --node_rank "$NODE_RANK" \
    --master_addr "${MASTER_ADDR:-${NODES%%[[:space:]]*}}" --master_port "${MASTER_PORT:-29500}" --log_level critical "$@"
) &
job=$!
trap 'asked=yes; kill -USR1 -- "-$job" 2>/dev/null' TERM USR1
trap 'asked=yes; kill -INT -- "-$job" 2>/dev/null' INT
while :; do
  asked=
  wait "$job"
  status=$?
  # A signal ends `wait` early.
  [ -n "$asked" ] || break
done
exit "$status"
