# shellcheck shell=bash
# What the scripts share. Slurm sends USR1 120 s before the end of a job's time (#SBATCH --signal):
# the study stops with its journal whole, goes back into the queue and resumes by the same command.

child='' code=0 pidfile=''

run() { # COMMAND ...: in the background, so that signals reach this shell at once
  trap 'stop; requeue' USR1
  trap 'stop; exit 143' TERM # cancelled, or preempted by Slurm, which requeues it itself
  "$@" &
  child=$!
  wait "$child" || code=$?
  trap '' USR1 TERM # too late: it has ended
}

stop() { # ends the study as Ctrl-C would, and waits for it
  trap '' USR1 TERM
  local seconds=0 target=$child
  if [[ -n $pidfile && -s $pidfile ]]; then
    target=$(<"$pidfile") # the study itself: `ray symmetric-run` would not pass a signal on
  fi
  echo "stopping the study (process $target)" >&2
  kill -TERM "$target" 2>/dev/null || true
  while kill -0 "$child" 2>/dev/null && ((seconds++ < EVOMERGE_GRACE)); do sleep 1; done
  kill -KILL "$child" 2>/dev/null || true
  wait "$child" || true
}

requeue() {
  if ((${SLURM_RESTART_COUNT:-0} >= EVOMERGE_REQUEUES)); then
    echo "requeued $SLURM_RESTART_COUNT times already; submit the same command to go on" >&2
  elif scontrol requeue "$SLURM_JOB_ID"; then
    echo "requeued; it goes on from its journal" >&2
  else
    echo "not requeued; submit the same command to go on" >&2
  fi
  exit 75
}

finish() { # ARGUMENTS of the study: the end in its journal tells whether it is finished
  if ! python -m evomerge status "$@"; then
    echo "the study is not finished (exit code of its command: $code)" >&2
    exit $((code ? code : 1))
  fi
  exit "$code"
}
