# What the recipes share: options, stages that remember what they did, MPI. Sourced by recipes/<corpus>/run.sh, which sets
# `corpus` and the defaults of its own options first (and, if it is not run.sh, `script` and the `suffix` of its folder).
#
#   --stage N       run from stage N on, finished or not (without it, finished stages are skipped)
#   --stop-stage M  stop after stage M
#   --nj N          parallel jobs of features, GMMs and decoding; changes no result (default: the cores, 4 at most)
#   --ranks N       MPI ranks of Hessian-free training; changes no result (default: 2)
#   --seed S        seed of training (default: 0)
#   --dir DIR       working folder (default: exp/<corpus>)

set -euo pipefail
caller=$PWD
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
export PATH=$root/.venv/bin:$PATH OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

cores=$(env -u OMP_NUM_THREADS nproc) # nproc takes one thread a process for one core
stage=
stop_stage=99
nj=$((cores < 4 ? cores : 4))
ranks=2
seed=0
dir=
script=recipes/$corpus/${script:-run.sh}

fail() {
  echo "$script: error: $*" >&2
  exit 2
}

# parse_options "$@": `--some-name VALUE` sets the variable some_name, which must have a default above or in run.sh.
parse_options() {
  local name number
  while (($#)); do
    if [[ $1 == --help || $1 == -h ]]; then
      sed -n '1d;/^set /q;s/^# \{0,1\}//p' "$script"
      sed -n 's/^# *--/  --/p' recipes/common.sh
      exit 0
    fi
    [[ $1 == --*=* ]] && set -- "${1%%=*}" "${1#*=}" "${@:2}"
    name=${1#--}
    name=${name//-/_}
    [[ $1 == --* && " stage stop_stage nj ranks seed dir ${own_options:-} " == *" $name "* ]] ||
      fail "unknown option '$1'. --help lists the options."
    (($# >= 2)) || fail "option $1 needs a value. --help lists the options."
    if [[ $name == dir ]]; then
      [[ $2 == /* ]] && dir=$2 || dir=$caller/$2
    else
      [[ $2 =~ ^[0-9]+$ ]] || fail "option $1 '$2' is not a whole number. --help lists the options."
      printf -v "$name" %d "$((10#$2))"
    fi
    shift 2
  done
  for number in nj ranks; do
    ((${!number} >= 1)) || fail "option --$number must be at least 1."
  done
  command -v asr-hf >/dev/null || fail "asr-hf is not installed. Run scripts/quickstart, or: pip install -e ."
  dir=${dir:-exp/$corpus${suffix:-}${fold:+-fold$fold}}
  mkdir -p "$dir/.done" "$dir/log"
  exec 9>"$dir/.lock" # held by this shell and what it starts, so also by ranks that outlive a killed recipe
  flock -n 9 || fail "another run is at work in $dir. Wait for it or stop it, or name another folder: --dir."
}

# stage N TITLE COMMAND…: run one stage, one line with its time. A stage is skipped when it finished with the same command
# (and the same text of it and of what it calls, where these are functions). Running it makes all later stages run again. Its output goes to
# $dir/log/NN.log. The command sees `resume`: true if it was cut short last time, so that what it left is worth going on from.
stage() {
  local number title=$2 nn began finished command log status began_at
  printf -v nn %02d "$1"
  number=$1
  shift 2
  ((number >= ${stage:-0} && number <= stop_stage)) || return 0
  finished=$dir/.done/$nn began=$dir/.done/$nn.began log=$dir/log/$nn.log
  command=$(echo "$*" && text_of "$1") # without a newline at its end, as files are read here
  if [[ -z $stage && -f $finished && $(<"$finished") == "$command" ]]; then
    return 0
  fi
  resume=false
  if [[ -z $stage && -f $began && $(<"$began") == "$command" ]]; then
    resume=true
  fi
  forget_from "$number"
  printf %s "$command" >"$began"
  printf '%2d  %-48s' "$number" "$title"
  began_at=$(now)
  set +e
  (
    set -e
    "$@"
  ) >"$log" 2>&1 </dev/null
  status=$?
  set -e
  if ((status)); then
    printf ' failed with status %d\n' "$status"
    tail -n 15 "$log" >&2
    echo "$script: stage $number failed; all of its output: $log; running again goes on from here" >&2
    exit "$status"
  fi
  seconds_since "$began_at" >"$finished.seconds"
  printf ' %6.1f s\n' "$(<"$finished.seconds")"
  mv "$began" "$finished"
}

# The text of a function and of the functions that it names.
text_of() {
  declare -f "$1" || return 0
  declare -f $(declare -f "$1" | tr -cs 'A-Za-z0-9_' '\n' | sort -u) || true
}

# forget_from N: stage N and later ones count as never run.
forget_from() {
  local mark number
  for mark in "$dir"/.done/*; do
    [[ -e $mark ]] || continue
    number=${mark##*/}
    number=$((10#${number%%.*}))
    if ((number >= $1)); then rm "$mark"; fi
  done
}

# How long stage N took when it last ran.
seconds_of() { cat "$dir/.done/$(printf %02d "$1").seconds"; }

now() { date +%s%N; }
seconds_since() {
  local tenths=$((($(now) - $1) / 100000000))
  echo "$((tenths / 10)).$((tenths % 10))"
}

# mpi N COMMAND…: on N MPI ranks, of this machine or, if N > 1, by the launcher ASR_HF_LAUNCH, which takes N first.
mpi() {
  if (($1 > 1)) && [[ -n ${ASR_HF_LAUNCH:-} ]]; then
    $ASR_HF_LAUNCH "$@"
  else
    scripts/launch/local "$@"
  fi
}

# join_feats OUT FEATS FEATS…: one folder of features from several (the archives stay where they are).
join_feats() {
  local out=$1 name part
  shift
  mkdir -p "$out"
  for name in text utt2spk spk2utt feats.scp; do
    for part in "$@"; do cat "$part/$name"; done | LC_ALL=C sort >"$out/$name.tmp"
    mv "$out/$name.tmp" "$out/$name"
  done
  cp "$1/features.json" "$out/features.json"
}

# evaluate STAGE SYSTEM MODEL GRAPH FEATS: tune scale and penalty on dev, freeze them, decode and score dev and test, and add
# the rows to results.json, with the seconds of STAGE, which trained the system.
evaluate() {
  local seconds system=$2 model=$3 graph=$4 feats=$5 out=$dir/decode/$2 subset
  seconds=$(seconds_of "$1")
  asr-hf tune "$feats/dev" "$graph" "$model" "$out" --jobs "$nj"
  for subset in dev test; do
    asr-hf decode "$feats/$subset" "$graph" "$model" "$out/$subset" --tuned "$out/tuned.json" --jobs "$nj"
    asr-hf score "${data:-$dir/data}/$subset" "$out/$subset/hyp.txt" "$out/$subset"
    asr-hf results "$dir/results.json" --add "$system" --set "$subset" --seed "$seed" \
      --score "$out/$subset/score.json" --seconds "$seconds"
  done
}

# write_table: $dir/RESULTS.md from $dir/results.json.
write_table() {
  local file=$dir/RESULTS.md
  printf '# %s\n\n<!-- results:begin -->\n<!-- results:end -->\n' "$corpus" >"$file.tmp"
  asr-hf results "$dir/results.json" --table --markdown "$file.tmp"
  mv "$file.tmp" "$file"
}
