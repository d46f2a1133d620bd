#!/usr/bin/env bash
# A training run under PBS that goes on over time limits. In the root of the checkout:
#
#   COMMAND="asr-hf train exp/run corpus.train=… optimizer=hf" qsub -v COMMAND scripts/launch/pbs.sh
#
# Two minutes before the limit the run is told to end after its present update, and the job is submitted again. Edit the
# lines of #PBS here: options on qsub's command line do not reach the next job. Words of COMMAND are parted by blanks alone.
#PBS -N asr-hf
#PBS -l select=2:ncpus=4:mpiprocs=4
#PBS -l walltime=24:00:00
#PBS -j oe
#PBS -r y
set -euo pipefail
cd "$PBS_O_WORKDIR" # PBS runs a copy of this file
source scripts/launch/environment.sh
[[ -n ${COMMAND:-} ]] || fail "no command. COMMAND='asr-hf train …' qsub -v COMMAND scripts/launch/pbs.sh"
read -ra words <<<"$COMMAND"

IFS=: read -r hours minutes seconds < <(sed -n 's/^#PBS -l walltime=//p' scripts/launch/pbs.sh)
(sleep $((10#$hours * 3600 + 10#$minutes * 60 + 10#$seconds - 120)) && kill -USR1 $$) &
clock=$!
status=0
start_ranks --hostfile "$PBS_NODEFILE" -n "$(wc -l <"$PBS_NODEFILE")" -x PATH -x OMP_NUM_THREADS -x MKL_NUM_THREADS \
  "${words[@]}" || status=$?
pkill -P "$clock" || true # its sleep
if wants_to_go_on "$status"; then
  echo "exit status $status: submitting the job again"
  qsub -v COMMAND scripts/launch/pbs.sh
fi
exit "$status"
