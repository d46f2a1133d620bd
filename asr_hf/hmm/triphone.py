"""Triphone training: a decision tree on the alignments of another model, then Viterbi EM.

Shape suffixes: T frames, D feature dim, M contexts, P pdfs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from asr_hf.data.archive import FeatureArchive, read_int_vectors
from asr_hf.data.fingerprint import read_fingerprint
from asr_hf.errors import InputError
from asr_hf.hmm.alignment import (
    Alignment,
    check_length,
    chunks_by_length,
    read_training_text,
    require_same_phones,
    require_some,
)
from asr_hf.hmm.gmm import Gmm, GmmOptions, single_gaussians
from asr_hf.hmm.lang import Lang
from asr_hf.hmm.model import HmmModel
from asr_hf.hmm.tree import ContextStats, TreeOptions, build_tree
from asr_hf.hmm.viterbi_em import (
    PassReport,
    Speech,
    TrainingReport,
    ViterbiTraining,
    global_variance,
    sum_moments,
)
from asr_hf.hmm.workers import Workers

TREE_FLOOR = 0.01  # least variance of a leaf's Gaussian, as a fraction of that of all frames


def contexts_of(state_T: np.ndarray, hmm: HmmModel) -> np.ndarray:
    """(T, 4) left phone, phone, right phone and HMM state of every frame of a state alignment.

    A phone begins where its first state is entered; the edges of the utterance count as silence.
    """
    phone_T = hmm.phone_of_state()[state_T]
    position_T = state_T - hmm.first_state[phone_T - 1]
    begins = (position_T == 0) & (np.diff(state_T, prepend=-1) != 0)
    segment_T = np.cumsum(begins) - 1
    phones = np.concatenate([[hmm.silence_number], phone_T[begins], [hmm.silence_number]])
    return np.stack([phones[segment_T], phones[segment_T + 1], phones[segment_T + 2], position_T], axis=1)


def in_context(state_T: np.ndarray, old: HmmModel, new: HmmModel) -> Alignment:
    """The same state alignment with the pdfs of a model with the same topology."""
    contexts = contexts_of(state_T, old)
    pdf_T = [new.pdfs(left, phone, right)[state] for left, phone, right, state in contexts.tolist()]
    return Alignment(np.array(pdf_T, dtype=np.int32), state_T.astype(np.int32))


@dataclass(frozen=True)
class StatsTask:
    chunk: int
    states: dict[str, np.ndarray]


class AlignedSpeech(Speech):
    """Speech that also counts states in context."""

    def context_stats(self, task: StatsTask) -> ContextStats:
        names = list(task.states)
        contexts = np.concatenate([np.zeros((0, 4), int), *(contexts_of(task.states[n], self.hmm) for n in names)])
        feats = np.concatenate([np.zeros((0, self.archive.dim), np.float32), *(self.archive[n] for n in names)])
        return ContextStats.from_frames(contexts, feats)


def train_tri(
    feats_dir: Path | str,
    lang_dir: Path | str,
    ali_dir: Path | str,
    model_dir: Path | str,
    gmm_options: GmmOptions,
    tree_options: TreeOptions,
    jobs: int = 1,
    report: Callable[[PassReport], None] = lambda _: None,
) -> TrainingReport:
    """Train a triphone GMM from the alignments of another GMM and write MODEL with its alignments.

    Args:
        feats_dir: features and transcripts.
        lang_dir: lexicon and phones.
        ali_dir: a folder that mono, tri or align wrote, with alignments of FEATS.
        model_dir: the folder to write.
        gmm_options, tree_options: see GmmOptions and TreeOptions; the topology is that of the alignments.
        jobs: processes; the model is the same bit for bit whatever their number.
        report: called after every EM pass.

    Raises:
        InputError: alignments that do not fit features or phones; other features than the alignments'.
    """
    fingerprint = read_fingerprint(feats_dir)
    archive = FeatureArchive(Path(feats_dir) / "feats.scp", check_finite=True)
    lang = Lang.load(lang_dir)
    old = HmmModel.load(ali_dir)
    old.require_bakis(ali_dir)
    require_same_phones(old, lang)
    transcripts = read_training_text(feats_dir, archive, lang)
    chunks = chunks_by_length(archive)
    states = read_state_alignments(ali_dir, archive, old)
    require_some(states, list(archive))
    by_chunk = [{name: states[name] for name in chunk if name in states} for chunk in chunks]
    with Workers(jobs, AlignedSpeech, archive, lang, old, transcripts, chunks) as workers:
        moments = sum_moments(workers.map("moments", range(len(chunks))))
        variance_D = global_variance(moments)
        tasks = [StatsTask(chunk, states) for chunk, states in enumerate(by_chunk)]
        stats = ContextStats.merged(workers.map("context_stats", tasks))
    new = build_tree(stats, old, TREE_FLOOR * variance_D.numpy(), tree_options)
    alignments = [{name: in_context(s, old, new) for name, s in chunk.items()} for chunk in by_chunk]
    floor_D = gmm_options.variance_floor * variance_D
    with Workers(jobs, Speech, archive, lang, new, transcripts, chunks) as workers:
        training = ViterbiTraining(workers, gmm_options, floor_D, new, leaf_gaussians(stats, new, floor_D), alignments)
        training.run(report)
        return training.finish(fingerprint, model_dir, list(transcripts))


def leaf_gaussians(stats: ContextStats, hmm: HmmModel, floor_D: torch.Tensor) -> Gmm:
    """One Gaussian per leaf from the statistics that the tree was grown on."""
    pdf_M = [hmm.pdfs(left, phone, right)[state] for left, phone, right, state in stats.contexts.tolist()]
    stats_PC = np.zeros((hmm.num_pdfs, stats.stats.shape[1]))
    np.add.at(stats_PC, pdf_M, stats.stats)
    count, first, second = torch.from_numpy(stats_PC).split([1, len(floor_D), len(floor_D)], dim=1)
    return single_gaussians(count[:, 0], first, second, floor_D)


def read_state_alignments(ali_dir: Path | str, archive: FeatureArchive, hmm: HmmModel) -> dict[str, np.ndarray]:
    """Utterance -> (T,) phone-states, for the utterances that have features.

    Raises:
        InputError: no state alignments, states outside the model, another number of frames than the features.
    """
    path = Path(ali_dir) / "state.scp"
    if not path.is_file():
        raise InputError(f"{path} is missing", "Name a folder that asr-hf mono, tri or align wrote.")
    states = {name: state_T for name, state_T in read_int_vectors(path).items() if name in archive}
    for name, state_T in states.items():
        check_length(name, len(state_T), archive, ali_dir)
        if state_T.min() < 0 or state_T.max() >= hmm.first_state[-1]:
            raise InputError(f"{path}: utterance {name} has a state outside hmm.json", "Align again.")
    return states
