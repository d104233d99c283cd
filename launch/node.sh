#!/usr/bin/env bash
# One node's part of a job on several nodes: run it once on every node, in the repository, with the same arguments.
#
#   node.sh [--module] launch/pretrain.py CONFIG [key=value …]
#
#   NODES         names or addresses of all nodes, in the same order everywhere; each must reach each under them
#   NODE_RANK     this node's place in NODES, from 0
#   PROCESSES     processes a node: one a GPU, or as many as should share its cores
#   SPARES        how many of NODES wait until another one is lost; default: 0
#   MIN_NODES     fewest nodes to go on with; default: 1
#   MAX_RESTARTS  restarts without a new checkpoint between them, after which the job ends; default: 3
#   MASTER_PORT   where rank 0 listens; the nodes themselves talk at the next one; default: 29500
#   STATUS_FILE   file that the exit status is also written to; default: none
#   PYTHON        default: python
#
# A lost process or node restarts the job on what is left. SIGTERM, SIGINT, SIGHUP and SIGUSR1 ask the job to save and leave. The
# status is then 75; 69 says that too little is left. After both, run the same again to go on.
set -u
: "${NODES:?names of all nodes}" "${NODE_RANK:?place of this node in NODES, from 0}" "${PROCESSES:?processes a node}"
if [ $# -eq 0 ]; then
  echo "usage: node.sh SCRIPT CONFIG [key=value …]" >&2
  exit 2
fi
export NODES NODE_RANK PROCESSES
exec "${PYTHON:-python}" -m sleepfm.training.nodes "$@"
