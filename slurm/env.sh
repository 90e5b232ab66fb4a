# shellcheck shell=bash
# The only file a site edits. Every script here reads it, and you do before `sbatch`:
#   source slurm/env.sh && sbatch slurm/single_node.sbatch +experiment=NAME

# For sbatch. #SBATCH lines cannot hold variables; sbatch takes these from the environment, where
# they win over #SBATCH lines and lose against its command line (sbatch --partition=...).
# export SBATCH_PARTITION=gpu SBATCH_ACCOUNT=my_project SBATCH_QOS=normal SBATCH_TIMELIMIT=24:00:00

# Modules and the virtual environment, the same on all nodes.
# module load cuda
EVOMERGE_VENV=${EVOMERGE_VENV:-.venv}
if [[ -f $EVOMERGE_VENV/bin/activate ]]; then
  # shellcheck disable=SC1091
  source "$EVOMERGE_VENV/bin/activate"
fi

# Studies run where you called sbatch, and write below runs/ there (or to run_dir=DIR). All nodes
# have to see it, and the models. Compute nodes often have no network: models are then looked for
# on disk only.
export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1}
# export HF_HOME=/shared/huggingface

# Node-local files of Ray. The path has to be short: sockets in it may have 107 characters.
export RAY_TMPDIR=${EVOMERGE_TMP:-${TMPDIR:-/tmp}}/ray-${SLURM_JOB_ID:-0}

# Ray over several nodes: the first node's address (ip -br addr; that of the fast network), ports
# that the firewall leaves open between nodes (1100 or more), and workers on each node (one a GPU).
EVOMERGE_HEAD=${EVOMERGE_HEAD:-$(hostname -I 2>/dev/null | cut -d' ' -f1)}
EVOMERGE_PORTS=${EVOMERGE_PORTS:-20000-29999}
EVOMERGE_WORKERS_PER_NODE=${EVOMERGE_WORKERS_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}
# Only who has the token of ~/.ray/auth_token (made once: ray get-auth-token --generate) may use it.
export RAY_AUTH_MODE=${RAY_AUTH_MODE:-token} RAY_USAGE_STATS_ENABLED=0
# Seconds that nodes wait for each other at the start, and for the first node when it has gone, as
# it has at the end; the study itself looks for it for 20 s.
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=${RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT:-120}
export RAY_gcs_rpc_server_reconnect_timeout_s=${RAY_gcs_rpc_server_reconnect_timeout_s:-30}

# How often a study is put back into the queue, and seconds that it gets to stop.
EVOMERGE_REQUEUES=${EVOMERGE_REQUEUES:-100}
EVOMERGE_GRACE=${EVOMERGE_GRACE:-90}
