"""Flat start: a monophone GMM from transcripts and features alone."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from asr_hf.data.archive import FeatureArchive
from asr_hf.data.fingerprint import read_fingerprint
from asr_hf.hmm.alignment import Alignment, chunks_by_length, read_training_text, require_some
from asr_hf.hmm.gmm import GmmOptions, single_gaussians
from asr_hf.hmm.lang import Lang
from asr_hf.hmm.model import HmmModel, monophone_model
from asr_hf.hmm.viterbi_em import (
    PassReport,
    Speech,
    TrainingReport,
    ViterbiTraining,
    global_variance,
    sum_moments,
)
from asr_hf.hmm.workers import Workers


def equal_alignment(words: tuple[str, ...], lang: Lang, hmm: HmmModel, frames: int) -> Alignment | None:
    """Share the frames of an utterance equally among the states of its first pronunciations.

    Silence stands at both ends if it fits; the shortest pronunciations are taken if the first do not fit. None if
    nothing fits.
    """
    variants = lang.lexicon.variants
    first = [phone for word in words for phone in variants[word][0].phones]
    shortest = [phone for word in words for phone in min((v.phones for v in variants[word]), key=len)]
    for phones in ([lang.silence, *first, lang.silence], first, shortest):
        numbers = [lang.phones[phone] for phone in phones]
        states = [hmm.first_state[n - 1] + s for n in numbers for s in range(hmm.states[n - 1])]
        pdfs = [pdf for n in numbers for pdf in hmm.pdfs(0, n, 0)]
        if 0 < len(states) <= frames:
            position = np.arange(frames) * len(states) // frames
            return Alignment(np.array(pdfs, np.int32)[position], np.array(states, np.int32)[position])
    return None


def train_mono(
    feats_dir: Path | str,
    lang_dir: Path | str,
    model_dir: Path | str,
    options: GmmOptions,
    jobs: int = 1,
    report: Callable[[PassReport], None] = lambda _: None,
) -> TrainingReport:
    """Train a monophone GMM from equal alignments by Viterbi EM and write MODEL with its alignments.

    Args:
        feats_dir: features and transcripts.
        lang_dir: lexicon and phones.
        model_dir: the folder to write.
        options: see GmmOptions.
        jobs: processes; the model is the same bit for bit whatever their number.
        report: called after every EM pass.

    Raises:
        InputError: bad features or transcripts, or no utterance that can be aligned.
    """
    fingerprint = read_fingerprint(feats_dir)
    archive = FeatureArchive(Path(feats_dir) / "feats.scp", check_finite=True)
    lang = Lang.load(lang_dir)
    transcripts = read_training_text(feats_dir, archive, lang)
    hmm = monophone_model(lang.phone_names, lang.silence, options.states, options.silence_states)
    chunks = chunks_by_length(archive)
    equal = [_equal_alignments(chunk, transcripts, lang, hmm, archive) for chunk in chunks]
    found = {name: ali for chunk in equal for name, ali in chunk.items()}
    require_some(found, sorted(transcripts.keys() - found.keys()))
    with Workers(jobs, Speech, archive, lang, hmm, transcripts, chunks) as workers:
        moments = sum_moments(workers.map("moments", range(len(chunks))))
        floor = options.variance_floor * global_variance(moments)
        flat = single_gaussians(
            moments.first_D.new_full((hmm.num_pdfs,), moments.count),
            moments.first_D.expand(hmm.num_pdfs, -1),
            moments.second_D.expand(hmm.num_pdfs, -1),
            floor,
        )
        training = ViterbiTraining(workers, options, floor, hmm, flat, equal)
        training.run(report)
        return training.finish(fingerprint, model_dir, list(transcripts))


def _equal_alignments(
    chunk: list[str], transcripts: dict[str, tuple[str, ...]], lang: Lang, hmm: HmmModel, archive: FeatureArchive
) -> dict[str, Alignment]:
    found = ((name, equal_alignment(transcripts[name], lang, hmm, archive.num_frames(name))) for name in chunk)
    return {name: alignment for name, alignment in found if alignment is not None}
