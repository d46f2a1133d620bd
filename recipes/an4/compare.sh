#!/usr/bin/env bash
# Optimisers beside each other on AN4, tuned alike and run at equal cost: hours on 2 cores, and it goes on where it stopped.
#
#   AN4_ROOT=…/an4_sphere.tar.gz recipes/an4/compare.sh [--stage N] [--stop-stage M] [--nj N] …
#
# Takes features and alignments from exp/an4 (made if they are not there) and the folds from exp/an4-fold1 to 4. Everything
# else goes to exp/an4-compare: <model>-<start>/compare.json and compare.html. compare/*.yaml lists systems and trials.
#
set -euo pipefail
[[ -z ${AN4_ROOT:-} ]] || AN4_ROOT=$(realpath "$AN4_ROOT")
export AN4_ROOT
corpus=an4 fold='' script=compare.sh
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
dir=$root/exp/an4-compare
parse_options "$@"

conf=recipes/an4/conf systems=recipes/an4/compare seeds="0 1 2" reference=hf budgets="--budget 20 --trial-budget 8" wer_seeds=0

# of FEATS ALI: the corpus of a run
of() { echo "corpus.train=$1/train corpus.heldout=$1/heldout corpus.alignments=$2"; }
align_dev() { asr-hf align exp/an4/fbank/dev exp/an4/lang exp/an4/dnn-for-alignment "$dir/ali-dev"; }

# first_epoch OUT MODEL SEED FEATS ALI
first_epoch() {
  $resume || rm -rf "$1"
  asr-hf train "$1" --config-dir "$conf" $(of "$4" "$5") model="$2" optimizer=sgd_an4 optimizer.epochs=1 training.seed="$3"
}
first_epochs() {
  local s
  for s in $seeds; do
    first_epoch "$dir/start-dnn-$s" an4_small "$s" exp/an4/fbank exp/an4/ali
    first_epoch "$dir/start-tdnn-$s" an4_tdnn_small "$s" exp/an4/fbank exp/an4/ali
    first_epoch "$dir/start-lstm-$s" an4_lstm_small "$s" exp/an4/fbank exp/an4/ali
  done
}

# compare NAME MODEL START FILE…: START is random or warm
compare() {
  local name=$1 model=$2 start=$3 init=()
  [[ $start == random ]] || init=("training.init='$dir/start-${name%%-*}-{seed}'")
  asr-hf compare "$dir/$name" "${@:4}" --config-dir "$conf" --seeds 0,1,2 $budgets --jobs "$nj" \
    --dev exp/an4/fbank/dev --dev-alignments "$dir/ali-dev" --graph exp/an4/graph-tri --wer-seeds $wer_seeds \
    --decode-dev exp/an4/fbank/dev --decode-test exp/an4/fbank/test --reference "$reference" \
    $(of exp/an4/fbank exp/an4/ali) model="$model" "${init[@]}"
}

# on_fold K: the winners after an epoch of SGD, on a fold with alignments of its triphone GMM
on_fold() {
  local fold=exp/an4-fold$1
  recipes/an4/run.sh --fold "$1" --stop-stage 5 --nj "$nj"
  resume=false first_epoch "$dir/start-fold$1-0" an4_small 0 "$fold/fbank" "$fold/tri"
  asr-hf compare "$dir/fold$1" "$systems/warm.yaml" --config-dir "$conf" --seeds 0 --budget 20 --jobs "$nj" \
    --tuned "$dir/dnn-warm/compare.json" --graph "$fold/graph-tri" \
    --decode-dev "$fold/fbank/dev" --decode-test "$fold/fbank/test" --reference hf \
    $(of "$fold/fbank" "$fold/tri") model=an4_small "training.init='$dir/start-fold$1-{seed}'"
}

# chain_start: chain HMMs with supervision of dev too, and networks trained by cross-entropy on their pdfs, a seed each
chain_start() {
  local s
  asr-hf chain exp/an4/fbank/train+heldout exp/an4/lang "$dir/chain" --ali exp/an4/ali tree.leaves=240
  asr-hf chain exp/an4/fbank/dev exp/an4/lang "$dir/chain-dev" --ali "$dir/ali-dev" --model "$dir/chain"
  asr-hf graph exp/an4/lang "$dir/chain" "$dir/graph-chain" graph.self_loop_scale=1 graph.transition_scale=1
  for s in $seeds; do
    $resume || rm -rf "$dir/start-chain-$s"
    asr-hf train "$dir/start-chain-$s" --config-dir "$conf" $(of exp/an4/fbank "$dir/chain") model=an4_chain_small \
      optimizer=adam_lfmmi optimizer.epochs=4 training.seed="$s"
  done
}

# compare_lfmmi NAME FILE…
compare_lfmmi() {
  asr-hf compare "$dir/$1" "${@:2}" --config-dir "$conf" --seeds 0,1,2 $budgets --jobs "$nj" \
    --dev exp/an4/fbank/dev --dev-alignments "$dir/chain-dev" --graph "$dir/graph-chain" --wer-seeds $wer_seeds \
    --decode-dev exp/an4/fbank/dev --decode-test exp/an4/fbank/test --reference "$reference" \
    $(of exp/an4/fbank "$dir/chain") criterion=lfmmi model=an4_chain_small "training.init='$dir/start-chain-{seed}'"
}

# averages NAME DEV_LABELS GRAPH OVERRIDE…: four replicas on small minibatches from each winner of SGD at 1/4 of the frames a step
# (stages 13, 14): from seed 0 at six rates, from all seeds at the one whose average has the lowest loss on dev
averages() {
  local out=$dir/$1-average start=$dir/$1-batches/sgd_4/seed judges="--dev exp/an4/fbank/dev --dev-alignments $2" rate best s
  local decode="--graph $3 --decode-dev exp/an4/fbank/dev --decode-test exp/an4/fbank/test --jobs $nj"
  $resume || rm -rf "$out"
  for rate in 0.01 0.02 0.05 0.1 0.2 0.5; do
    replicas "$out/rate-$rate-seed-0" "$start-0" 0 "$rate" "${@:4}"
  done
  asr-hf bench averages "$out"/rate-*-seed-0 --out "$out/rates.json" $judges
  best=$(python - "$out/rates.json" <<'END'
import json, sys
averages = json.load(open(sys.argv[1]))["averages"].values()
print(min(averages, key=lambda found: found["average"]["dev"])["optimizer"]["rate"])
END
  )
  for s in $seeds; do
    replicas "$out/rate-$best-seed-$s" "$start-$s" "$s" "$best" "${@:4}"
  done
  asr-hf bench averages "$out/rate-$best"-seed-* --out "$out/seeds.json" $judges $decode
}

# replicas OUT START SEED RATE OVERRIDE…: replica k has seed 10 SEED + k
replicas() {
  asr-hf average "$1" --replicas 4 --config-dir "$conf" training.init="$2" training.seed="$((10 * $3))" optimizer=sgd \
    optimizer.epochs=4 optimizer.schedule=milestones optimizer.warmup=0 optimizer.rate="$4" "${@:5}"
}

stage 0 "features, GMMs and alignments of the corpus" recipes/an4/run.sh --stop-stage 8 --nj "$nj" --ranks "$ranks"
stage 1 "alignment of dev, to tune on" align_dev
stage 2 "an epoch of SGD: where warm runs start" first_epochs
stage 3 "DNN from random weights" compare dnn-random an4_small random "$systems"/{,samples-}random.yaml
stage 4 "DNN after an epoch of SGD" compare dnn-warm an4_small warm "$systems"/{,samples-}warm.yaml
stage 5 "TDNN from random weights" compare tdnn-random an4_tdnn_small random "$systems"/random.yaml
stage 6 "TDNN after an epoch of SGD" compare tdnn-warm an4_tdnn_small warm "$systems"/warm.yaml
for k in 1 2 3 4; do
  stage $((6 + k)) "fold $k: the winners after an epoch of SGD" on_fold "$k"
done
stage 11 "chain HMMs, and TDNNs trained by cross-entropy" chain_start
stage 12 "lattice-free MMI after cross-entropy" compare_lfmmi tdnn-lfmmi "$systems"/{,samples-,matrices-}lfmmi.yaml
# batches up to the whole corpus: as many epochs as their schedule says, in trials too
reference=sgd_64 budgets="--budget 0 --trial-budget 0" wer_seeds=0,1,2
stage 13 "large batches: TDNN from random weights" compare tdnn-batches an4_tdnn_small random "$systems"/batches.yaml
stage 14 "large batches: lattice-free MMI after cross-entropy" compare_lfmmi lfmmi-batches "$systems"/batches-lfmmi.yaml
stage 15 "averages of replicas: TDNN" averages tdnn "$dir/ali-dev" exp/an4/graph-tri \
  $(of exp/an4/fbank exp/an4/ali) model=an4_tdnn_small optimizer.minibatch_frames=800
stage 16 "averages of replicas: lattice-free MMI" averages lfmmi "$dir/chain-dev" "$dir/graph-chain" \
  $(of exp/an4/fbank "$dir/chain") criterion=lfmmi model=an4_chain_small optimizer.minibatch_frames=2400
reference=hf budgets="--budget 20 --trial-budget 8" wer_seeds=0
stage 17 "K-FAC, stochastic Hessian-free: DNN after an epoch of SGD" compare dnn-relatives an4_small warm "$systems"/relatives-warm.yaml
stage 18 "structural damping: LSTM after an epoch of SGD" compare lstm-structural an4_lstm_small warm "$systems"/structural-warm.yaml
