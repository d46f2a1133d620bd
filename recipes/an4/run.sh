#!/usr/bin/env bash
# CMU AN4: letters, digits and commands, read by 84 people; from the published corpus to word error rates.
#
#   AN4_ROOT=…/an4_sphere.tar.gz recipes/an4/run.sh [--fold K] [--stage N] [--stop-stage M] [--nj N] [--ranks N] …
#
# AN4_ROOT is the tarball or the folder an4. Everything goes to exp/an4 (a fold's to exp/an4-fold<K>): data, features,
# models, decode/<system>/<set>/report.txt, results.json, RESULTS.md.
#
#   --fold K        1 to 4: one of four speaker-disjoint folds over all 1,078 utterances (default: the official split)
#
set -euo pipefail
[[ -z ${AN4_ROOT:-} ]] || AN4_ROOT=$(realpath "$AN4_ROOT")
export AN4_ROOT
corpus=an4 fold='' own_options=fold
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
parse_options "$@"

data=$dir/data mfcc=$dir/mfcc fbank=$dir/fbank lang=$dir/lang

# prepare FOLD
prepare() {
  python recipes/an4/prepare.py "$data" ${1:+--fold "$1"}
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
  join_feats "$fbank/train+heldout" "$fbank/train" "$fbank/heldout"
}

make_lang() { asr-hf lang "$lang" --lexicon "$data/lexicon.txt" --text "$mfcc/train+heldout/text"; }

monophone() {
  asr-hf mono "$mfcc/train+heldout" "$lang" "$dir/mono" --jobs "$nj"
  asr-hf graph "$lang" "$dir/mono" "$dir/graph-mono"
}

triphone() {
  asr-hf tri "$mfcc/train+heldout" "$lang" "$dir/mono" "$dir/tri" --jobs "$nj"
  asr-hf graph "$lang" "$dir/tri" "$dir/graph-tri"
}

# neural RANKS NAME MODEL ALI SEED OVERRIDE…
neural() {
  local ranks=$1 run=$dir/$2 model=$3 ali=$4
  $resume || rm -rf "$run"
  mpi "$ranks" asr-hf train "$run" --config-dir recipes/an4/conf corpus.train="$fbank/train" \
    corpus.heldout="$fbank/heldout" corpus.alignments="$ali" model="$model" training.seed="$5" "${@:6}"
}
# hessian_free NAME MODEL ALI SEED UPDATES: after one epoch of Adam
hessian_free() {
  neural 1 "$1-first-epoch" "$2" "$3" "$4" optimizer=first_epoch
  neural "$ranks" "$1" "$2" "$3" "$4" optimizer=hf_after_epoch optimizer.updates="$5" training.init="$dir/$1-first-epoch"
}
# first_order sgd|adam MODEL ALI SEED
first_order() { neural 1 "dnn-ce-$1" "$2" "$3" "$4" optimizer="$1_an4"; }
realign() { asr-hf align "$fbank/train+heldout" "$lang" "$dir/dnn-for-alignment" "$dir/ali"; }
# conf MODEL: a checksum that makes a stage run again when the options of its model or of an optimiser changed
conf() { cat recipes/an4/conf/{model/"$1",optimizer/*}.yaml | cksum; }

scoring="  tune on dev, decode and score dev and test"
# the checksum makes a changed prepare.py run again
stage 0 "find the corpus, cut it, validate it" prepare "$fold" "$(cksum <recipes/an4/prepare.py)"
stage 1 "features: MFCC and filterbank" features
stage 2 "lexicon, n-gram" make_lang
stage 3 "monophone GMM: flat start, decoding graph" monophone
stage 4 "$scoring" evaluate 3 mono "$dir/mono" "$dir/graph-mono" "$mfcc"
stage 5 "triphone GMM: tree, decoding graph" triphone
stage 6 "$scoring" evaluate 5 tri "$dir/tri" "$dir/graph-tri" "$mfcc"
stage 7 "DNN for alignment: Hessian-free, $ranks MPI ranks" hessian_free dnn-for-alignment an4 "$dir/tri" "$seed" 4 "$(conf an4)"
stage 8 "realignment with that DNN" realign
stage 9 "DNN by Hessian-free, $ranks MPI ranks" hessian_free dnn-ce-hf an4 "$dir/ali" "$seed" 4 "$(conf an4)"
stage 10 "$scoring" evaluate 9 dnn-ce-hf "$dir/dnn-ce-hf" "$dir/graph-tri" "$fbank"
stage 11 "DNN by SGD with momentum" first_order sgd an4 "$dir/ali" "$seed" "$(conf an4)"
stage 12 "$scoring" evaluate 11 dnn-ce-sgd "$dir/dnn-ce-sgd" "$dir/graph-tri" "$fbank"
stage 13 "DNN by Adam" first_order adam an4 "$dir/ali" "$seed" "$(conf an4)"
stage 14 "$scoring" evaluate 13 dnn-ce-adam "$dir/dnn-ce-adam" "$dir/graph-tri" "$fbank"
stage 15 "TDNN by Hessian-free, $ranks MPI ranks" hessian_free tdnn-ce-hf an4_tdnn "$dir/ali" "$seed" 4 "$(conf an4_tdnn)"
stage 16 "$scoring" evaluate 15 tdnn-ce-hf "$dir/tdnn-ce-hf" "$dir/graph-tri" "$fbank"
stage 17 "LSTM by Hessian-free, $ranks MPI ranks" hessian_free lstm-ce-hf an4_lstm "$dir/ali" "$seed" 8 "$(conf an4_lstm)"
stage 18 "$scoring" evaluate 17 lstm-ce-hf "$dir/lstm-ce-hf" "$dir/graph-tri" "$fbank"
stage 19 "table of results" write_table
