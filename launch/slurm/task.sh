#!/usr/bin/env bash
# What srun runs once on every node: launch/node.sh with what Slurm knows. Also without sbatch:
#
#   srun --nodes=2 --ntasks-per-node=1 --gpus-per-node=8 --cpus-per-task=64 --no-kill --kill-on-bad-exit=0 --wait=0 \
#     bash launch/slurm/task.sh launch/pretrain.py CONFIG [key=value …]
#
# PROCESSES (processes a node) is needed where there are no GPUs. NODES is needed where nodes do not reach one another under the
# names that Slurm has for them.
set -u
: "${SLURM_JOB_ID:?run this with srun}"
NODES=${NODES:-$(scontrol show hostnames "$SLURM_STEP_NODELIST")} || exit 2
NODE_RANK=$SLURM_NODEID
PROCESSES=${PROCESSES:-${SLURM_GPUS_ON_NODE:-}}
if [ -z "$PROCESSES" ]; then
  echo "no GPUs allocated: set PROCESSES to the number of processes per node" >&2
  exit 2
fi
# Two jobs that share a node must not meet at one port.
MASTER_PORT=${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 5000 * 2))}
export NODES NODE_RANK PROCESSES MASTER_PORT
exec bash "$(dirname "$0")/../node.sh" "$@"
