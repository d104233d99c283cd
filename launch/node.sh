#!/usr/bin/env bash
# One node's part of a job on several nodes: run it once on every node, in the repository, with the same arguments.
#
#   node.sh [--module] launch/pretrain.py CONFIG [key=value …]
#
#   NODES         names or addresses of all nodes, in the same order everywhere; every node must reach every other by its name
#   NODE_RANK     this node's place in NODES, counted from 0
#   PROCESSES     processes per node: one per GPU, or as many as should share its cores
#   SPARES        how many of NODES stay in reserve until another one is lost; default: 0
#   MIN_NODES     fewest nodes to continue with; default: 1
#   MAX_RESTARTS  restarts without a new checkpoint between them, after which the job ends; default: 3
#   REGROUP_SECONDS  how long a start runs before nodes that came back are taken in; default: 300
#   MASTER_PORT   where rank 0 listens; the nodes themselves talk at the next one; default: 29500
#   STATUS_FILE   file that the exit status is also written to; default: none
#   PYTHON        default: python
#
# When a process or a node is lost, the job restarts on the nodes that are left. After SIGTERM, SIGINT, SIGHUP or SIGUSR1 it saves
# and ends with status 75. Status 69: too few nodes are left. After either, run the same command again to continue.
set -u
: "${NODES:?names of all nodes}" "${NODE_RANK:?place of this node in NODES, from 0}" "${PROCESSES:?processes a node}"
if [ $# -eq 0 ]; then
  echo "usage: node.sh SCRIPT CONFIG [key=value …]" >&2
  exit 2
fi
export NODES NODE_RANK PROCESSES
exec "${PYTHON:-python}" -m sleepfm.training.nodes "$@"
