# Sourced by the launchers of this folder, in the root of the checkout: the Python environment, one thread a rank, and mpiexec
# with what a run on ranks needs. ASR_HF_ENV names another environment than .venv (a folder with bin/asr-hf and bin/mpiexec).

environment=${ASR_HF_ENV:-$PWD/.venv}
if [[ -d $environment/bin ]]; then export PATH=$environment/bin:$PATH; fi
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export MKL_NUM_THREADS=${MKL_NUM_THREADS:-$OMP_NUM_THREADS}

fail() {
  echo "$(basename "$0"): error: $*" >&2
  exit 2
}

# start_ranks FLAG…: mpiexec with ULFM, without binding (a rank sleeps while it waits), in the background so that signals
# reach it. mpiexec would answer SIGTERM by killing its ranks; SIGUSR1 it hands to them, and `asr-hf train` then ends after
# the present update with a checkpoint. A host that is cut off is noticed within 30 s (Open MPI: 8 minutes).
# Returns mpiexec's exit status; 75 for a lost host, which mpiexec ends with status 0.
start_ranks() {
  local mpiexec said status=0
  command -v mpiexec >/dev/null || fail "no mpiexec on PATH. Run scripts/quickstart, or name the environment: ASR_HF_ENV"
  if ((EUID == 0)); then
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
    echo "mpi: running as root, so OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 are set"
  fi
  export PRTE_MCA_oob_tcp_keepalive_time=${PRTE_MCA_oob_tcp_keepalive_time:-10} # seconds of silence before a probe
  export PRTE_MCA_oob_tcp_keepalive_intvl=${PRTE_MCA_oob_tcp_keepalive_intvl:-5}
  export PRTE_MCA_oob_tcp_keepalive_probes=${PRTE_MCA_oob_tcp_keepalive_probes:-3}
  said=$(mktemp)
  mpiexec --with-ft ulfm --bind-to none "$@" 2> >(exec tee "$said" >&2) &
  mpiexec=$!
  trap 'kill -USR1 $mpiexec 2>/dev/null' USR1 TERM
  trap 'kill -INT $mpiexec 2>/dev/null' INT
  while true; do # a signal ends `wait` before mpiexec ends
    wait "$mpiexec" && status=0 || status=$?
    kill -0 "$mpiexec" 2>/dev/null || break
  done
  trap - USR1 TERM INT
  if ((status == 0)); then
    sleep 0.3 # tee may be behind
    grep -q "lost communication with a remote daemon" "$said" && status=75
  fi
  rm "$said"
  return "$status"
}

# wants_to_go_on STATUS: whether a run ended only to be started again: after a scheduler's signal (99, training.requeue_status)
# or because ranks were lost that it could not go on without (75).
wants_to_go_on() { (($1 == 99 || $1 == 75)); }
