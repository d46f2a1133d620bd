"""Forced alignments: the ALI folder, and aligning with any acoustic model.

Shape suffixes: T frames, S states, P pdfs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from asr_hf.data.archive import FeatureArchive, write_int_vectors
from asr_hf.data.fingerprint import read_fingerprint
from asr_hf.data.folder import whole_folder
from asr_hf.data.kaldi_dir import read_text
from asr_hf.errors import InputError
from asr_hf.hmm.lang import Lang
from asr_hf.hmm.model import HmmModel
from asr_hf.hmm.training_graph import TrainingGraph, training_graph
from asr_hf.hmm.viterbi import best_paths

_MOST_UTTERANCES, _MOST_FRAMES = 64, 40_000


@dataclass(frozen=True)
class Alignment:
    """One utterance: (T,) int32 pdf and (T,) int32 phone-state of every frame."""

    pdf_T: np.ndarray
    state_T: np.ndarray


def read_training_text(feats_dir: Path | str, archive: FeatureArchive, lang: Lang) -> dict[str, tuple[str, ...]]:
    """Transcripts of the utterances that have features, in the words of the lexicon.

    Raises:
        InputError: an utterance without transcript, or a word that the lexicon lacks.
    """
    text = Path(feats_dir) / "text"
    transcripts = read_text(feats_dir)
    for utterance in archive:
        if utterance not in transcripts:
            raise InputError(f"{text} has no transcript of utterance {utterance}", "Add it, or remove its features.")
    return {utterance: lang.known_words(utterance, transcripts[utterance], text) for utterance in archive}


def chunks_by_length(archive: FeatureArchive) -> list[list[str]]:
    """Utterances of similar length together, a few dozen a chunk: the same chunks whatever the number of jobs."""
    chunks: list[list[str]] = [[]]
    frames = 0
    for utterance in sorted(archive.keys(), key=lambda name: (archive.num_frames(name), name)):
        length = archive.num_frames(utterance)
        if chunks[-1] and (len(chunks[-1]) == _MOST_UTTERANCES or frames + length > _MOST_FRAMES):
            chunks.append([])
            frames = 0
        chunks[-1].append(utterance)
        frames += length
    return chunks


def align_batch(
    graphs: Sequence[TrainingGraph], emissions: Sequence[np.ndarray], hmm: HmmModel
) -> list[Alignment | None]:
    """Viterbi alignments of a few utterances from their (T, S) scores; None where there are too few frames."""
    paths = best_paths(graphs, emissions, *hmm.log_stay_and_leave())
    return [
        Alignment(graph.pdf[path.states_T].astype(np.int32), graph.state[path.states_T].astype(np.int32))
        if path is not None
        else None
        for graph, path in zip(graphs, paths, strict=True)
    ]


def write_alignments(folder: Path, alignments: Mapping[str, Alignment], final_dir: Path | str) -> None:
    """Write pdf.ark/scp and state.ark/scp into a folder that will lie at `final_dir`."""
    for name in ("pdf", "state"):
        vectors = ((utterance, getattr(alignments[utterance], f"{name}_T")) for utterance in sorted(alignments))
        write_int_vectors(folder / name, vectors, final_dir=final_dir)


def check_length(utterance: str, frames: int, archive: FeatureArchive, source: Path | str) -> None:
    """Refuse an alignment that is longer or shorter than its features (InputError)."""
    available = archive.num_frames(utterance)
    if frames != available:
        longer = "longer" if frames > available else "shorter"
        raise InputError(
            f"{source}: the alignment of utterance {utterance} has {frames} frames, {longer} than its features "
            f"with {available}",
            "Use features with the frame shift and edge handling (snip-edges) of the alignments.",
        )


@dataclass(frozen=True)
class AlignmentReport:
    """How many utterances and frames were aligned, and the names of those left out as too short."""

    utterances: int
    frames: int
    left_out: list[str]

    def __str__(self) -> str:
        missed = f"; left out as too short ({len(self.left_out)}): {', '.join(self.left_out)}" if self.left_out else ""
        return f"{self.utterances} utterances, {self.frames} frames aligned{missed}"


def align(
    feats_dir: Path | str,
    lang_dir: Path | str,
    hmm: HmmModel,
    scorer: Callable[[np.ndarray], np.ndarray],
    ali_dir: Path | str,
) -> AlignmentReport:
    """Force-align every utterance of FEATS to its transcript and write an ALI folder.

    Args:
        feats_dir: features and transcripts.
        lang_dir: lexicon.
        hmm: topology, tree and transition probabilities.
        scorer: (T, D) features to (T, P) natural-log likelihoods; a network's may be scaled.
        ali_dir: the folder to write.

    Raises:
        InputError: a chain model; scores that are not finite or not one per pdf; no utterance could be aligned.
    """
    hmm.require_bakis("the model")
    fingerprint = read_fingerprint(feats_dir)
    archive = FeatureArchive(Path(feats_dir) / "feats.scp")
    lang = Lang.load(lang_dir)
    require_same_phones(hmm, lang)
    transcripts = read_training_text(feats_dir, archive, lang)
    found: dict[str, Alignment] = {}
    for chunk in chunks_by_length(archive):
        graphs = [training_graph(transcripts[utterance], lang, hmm) for utterance in chunk]
        emissions = [
            _checked_scores(scorer(archive[utterance]), utterance, hmm)[:, graph.pdf]
            for utterance, graph in zip(chunk, graphs, strict=True)
        ]
        for utterance, alignment in zip(chunk, align_batch(graphs, emissions, hmm), strict=True):
            if alignment is not None:
                found[utterance] = alignment
    left_out = sorted(set(archive.keys()) - found.keys())
    require_some(found, left_out)
    with whole_folder(ali_dir, "hmm.json") as folder:
        write_alignments(folder, found, ali_dir)
        hmm.save(folder)
        fingerprint.save(folder)
    return AlignmentReport(len(found), sum(len(a.pdf_T) for a in found.values()), left_out)


def require_same_phones(hmm: HmmModel, lang: Lang) -> None:
    """Refuse a model and a LANG folder whose phones differ (InputError)."""
    hmm.require_topology("the model")
    if hmm.phones != lang.phone_names or hmm.silence != lang.silence:
        raise InputError(
            f"the model and {lang.folder} have different phones", "Use the LANG folder that the model was trained with."
        )


def require_some(found: Mapping[str, object], left_out: Sequence[str]) -> None:
    """Refuse to go on when not one utterance has an alignment (InputError)."""
    if not found:
        raise InputError(
            f"no utterance could be aligned ({len(left_out)} are too short for their transcripts, e.g. "
            f"{', '.join(left_out[:3])})",
            "Check that transcripts, lexicon and frame shift belong to these features.",
        )


def _checked_scores(scores_TP: np.ndarray, utterance: str, hmm: HmmModel) -> np.ndarray:
    if scores_TP.shape[1] != hmm.num_pdfs:
        raise InputError(
            f"the acoustic model scores {scores_TP.shape[1]} pdfs, hmm.json has {hmm.num_pdfs}",
            "Name one model folder.",
        )
    if not np.isfinite(scores_TP).all():
        raise InputError(f"utterance {utterance}: scores that are not finite", "Check its features and the model.")
    return scores_TP
