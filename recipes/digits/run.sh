#!/usr/bin/env bash
# Connected digits, spoken by espeak-ng: from no corpus at all to word error rates, in a few minutes.
#
#   recipes/digits/run.sh [--stage N] [--stop-stage M] [--nj N] [--ranks N] [--seed S] [--dir DIR]
#
# Everything goes to exp/digits: data, features, models, decode/<system>/<set>/report.txt, results.json, RESULTS.md.
#
set -euo pipefail
corpus=digits
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
parse_options "$@"

data=$dir/data mfcc=$dir/mfcc fbank=$dir/fbank lang=$dir/lang

prepare() {
  python recipes/digits/prepare.py "$data" --jobs "$nj"
  for subset in train heldout dev test; do
    asr-hf validate "$data/$subset" --lexicon "$data/lexicon.txt"
  done
}

features() {
  for subset in train heldout dev test; do
    asr-hf features "$data/$subset" "$mfcc/$subset" --jobs "$nj" features=mfcc
    asr-hf features "$data/$subset" "$fbank/$subset" --jobs "$nj" features=fbank
  done
  join_feats "$mfcc/train+heldout" "$mfcc/train" "$mfcc/heldout"
}

make_lang() { asr-hf lang "$lang" --lexicon "$data/lexicon.txt" --text "$mfcc/train+heldout/text"; }

monophone() {
  asr-hf mono "$mfcc/train+heldout" "$lang" "$dir/mono" --jobs "$nj"
  asr-hf graph "$lang" "$dir/mono" "$dir/graph"
}

# neural RANKS NAME OVERRIDE…
neural() {
  local ranks=$1 run=$dir/$2
  shift 2
  $resume || rm -rf "$run"
  mpi "$ranks" asr-hf train "$run" corpus.train="$fbank/train" corpus.heldout="$fbank/heldout" \
    corpus.alignments="$dir/mono" model.hidden_layers=3 model.norm=none "$@"
}
# from random weights: strong damping that may fall quickly
hessian_free() {
  neural "$ranks" dnn-ce-hf optimizer=hf training.seed="$1" \
    optimizer.updates=12 optimizer.damping.initial=4 optimizer.damping.drop=0.5
}
first_order() { neural 1 "dnn-ce-$1" optimizer="$1" training.seed="$2"; }

# lattice-free MMI: an epoch of Adam, then Hessian-free with exact curvature
chain_network() {
  local ranks=$1 run=$dir/$2
  $resume || rm -rf "$run"
  mpi "$ranks" asr-hf train "$run" corpus.train="$fbank/train" corpus.heldout="$fbank/heldout" corpus.alignments="$dir/chain" \
    criterion=lfmmi model=tdnn model.subsampling=3 model.width=96 training.seed="$3" "${@:4}"
}
lfmmi() {
  asr-hf chain "$mfcc/train+heldout" "$lang" "$dir/chain" --ali "$dir/mono" chain.context=mono
  asr-hf graph "$lang" "$dir/chain" "$dir/graph-chain" graph.self_loop_scale=1 graph.transition_scale=1
  chain_network 1 tdnn-lfmmi-first-epoch "$1" optimizer=adam optimizer.epochs=1 optimizer.minibatch_frames=2400
  chain_network "$ranks" tdnn-lfmmi-hf "$1" training.init="$dir/tdnn-lfmmi-first-epoch" optimizer=hf optimizer.updates=4 \
    optimizer.damping.initial=0.1 optimizer.minibatch_frames=9600 optimizer.curvature_minibatch_frames=4800
}

report() {
  write_table
  asr-hf results "$dir/results.json" --line "digits test" --system dnn-ce-hf --set test | tee "$dir/wer.txt"
}

scoring="  tune on dev, decode and score dev and test"
# the checksum makes a changed prepare.py run again
stage 0 "speak the corpus, validate it" prepare "$(cksum <recipes/digits/prepare.py)"
stage 1 "features: MFCC and filterbank" features
stage 2 "lexicon, n-gram" make_lang
stage 3 "monophone GMM: flat start, decoding graph" monophone
stage 4 "$scoring" evaluate 3 mono "$dir/mono" "$dir/graph" "$mfcc"
stage 5 "DNN by Hessian-free, MPI ranks: $ranks" hessian_free "$seed"
stage 6 "$scoring" evaluate 5 dnn-ce-hf "$dir/dnn-ce-hf" "$dir/graph" "$fbank"
stage 7 "DNN by SGD with momentum" first_order sgd "$seed"
stage 8 "$scoring" evaluate 7 dnn-ce-sgd "$dir/dnn-ce-sgd" "$dir/graph" "$fbank"
stage 9 "DNN by Adam" first_order adam "$seed"
stage 10 "$scoring" evaluate 9 dnn-ce-adam "$dir/dnn-ce-adam" "$dir/graph" "$fbank"
stage 11 "TDNN by lattice-free MMI and Hessian-free, MPI ranks: $ranks" lfmmi "$seed"
stage 12 "$scoring" evaluate 11 tdnn-lfmmi-hf "$dir/tdnn-lfmmi-hf" "$dir/graph-chain" "$fbank"
stage 13 "table of results" report
