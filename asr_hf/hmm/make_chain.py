"""A CHAIN folder made of alignments or, flat start, of transcripts; or of other utterances for the model of one."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from asr_hf.data.archive import FeatureArchive
from asr_hf.data.fingerprint import read_fingerprint
from asr_hf.errors import InputError, OptionError
from asr_hf.hmm.alignment import read_training_text, require_same_phones
from asr_hf.hmm.chain import ChainOptions, chain_model, drawn_phones, pdf_alignment, phone_sequences, tied_model
from asr_hf.hmm.chain_folder import Chain
from asr_hf.hmm.chain_graph import ChainGraph
from asr_hf.hmm.denominator import denominator_graph
from asr_hf.hmm.lang import Lang
from asr_hf.hmm.model import HmmModel
from asr_hf.hmm.numerator import Composer
from asr_hf.hmm.phone_lm import estimate_phone_lm
from asr_hf.hmm.supervision import LabelGraph, Supervision, from_alignment, from_transcript
from asr_hf.hmm.tree import TreeOptions
from asr_hf.hmm.triphone import read_state_alignments


@dataclass(frozen=True)
class ChainReport:
    """What a CHAIN folder holds, and the utterances left out, by the reason."""

    num_pdfs: int
    lm: str
    denominator: ChainGraph
    utterances: int
    left_out: dict[str, list[str]]

    def __str__(self) -> str:
        missed = "".join(f"; left out, {why} ({len(all_)}): {', '.join(all_)}" for why, all_ in self.left_out.items())
        return (
            f"{self.num_pdfs} pdfs; phone n-gram: {self.lm}; denominator: {self.denominator}; "
            f"{self.utterances} utterances{missed}"
        )


def make_chain(
    feats_dir: Path | str,
    lang_dir: Path | str,
    ali_dir: Path | str | None,
    chain_dir: Path | str,
    options: ChainOptions,
    tree_options: TreeOptions,
) -> ChainReport:
    """Make chain model, denominator graph and supervision of the utterances of FEATS, and write CHAIN.

    Args:
        feats_dir: features and transcripts of training and held-out set together.
        lang_dir: lexicon and phones.
        ali_dir: a folder that mono, tri or align wrote, with alignments of FEATS; None: flat start from transcripts.
        chain_dir: the folder to write.
        options, tree_options: see ChainOptions and TreeOptions.

    Raises:
        InputError: alignments or transcripts that do not fit features or phones; no utterance that fits.
        OptionError: a tree without alignments to grow it on.
    """
    fingerprint = read_fingerprint(feats_dir)
    archive = FeatureArchive(Path(feats_dir) / "feats.scp")
    lang = Lang.load(lang_dir)
    maker = _flat_start if ali_dir is None else _aligned
    hmm, sequences, labels, pdfs = maker(
        archive, lang, Path(feats_dir if ali_dir is None else ali_dir), options, tree_options
    )
    lm = estimate_phone_lm(sequences, options.lm)
    denominator = denominator_graph(lm, hmm)
    fitting, left_out = _fitting(labels, archive, denominator, options.subsampling)
    facts = {
        "flat_start": ali_dir is None, "options": asdict(options), "num_pdfs": hmm.num_pdfs,
        "lm_states": len(lm.histories), "lm_arcs": len(lm.src_A), "states": denominator.states,
        "transitions": len(denominator.src_A), "utterances": len(fitting), "left_out": left_out,
    }  # fmt: skip
    supervision, flat = Supervision.of(fitting), ali_dir is None
    chain = Chain(hmm, denominator, supervision, options.subsampling, options.tolerance, flat, facts)
    chain.save(chain_dir, fingerprint, {name: pdfs[name] for name in fitting if name in pdfs})
    return ChainReport(hmm.num_pdfs, str(lm), denominator, len(fitting), left_out)


def supervise(
    feats_dir: Path | str,
    lang_dir: Path | str,
    ali_dir: Path | str | None,
    model_dir: Path | str,
    chain_dir: Path | str,
) -> ChainReport:
    """Write CHAIN with the supervision of other utterances for the model and denominator of a CHAIN folder.

    Utterances whose phones the denominator does not allow are left out: its n-gram has no smoothing.

    Args:
        feats_dir: features and transcripts, of a dev set for instance.
        lang_dir: lexicon and phones.
        ali_dir: alignments of FEATS; None for a model of a flat start.
        model_dir: the CHAIN folder to take model, denominator and options from.
        chain_dir: the folder to write.

    Raises:
        InputError: alignments, transcripts or LANG that do not fit features or phones; no utterance that fits.
        OptionError: alignments for a flat start, or none for another model; chain_dir is model_dir.
    """
    if Path(chain_dir).resolve() == Path(model_dir).resolve():
        raise OptionError(f"{chain_dir} is the folder of --model itself", "Name a new folder: this would overwrite it.")
    fingerprint, archive = read_fingerprint(feats_dir), FeatureArchive(Path(feats_dir) / "feats.scp")
    lang, model = Lang.load(lang_dir), Chain.load(model_dir)
    require_same_phones(model.hmm, lang)
    if model.flat_start != (ali_dir is None):
        made = "from transcripts alone" if model.flat_start else "from alignments"
        raise OptionError(f"{model_dir} was made {made}", "Give --ali or --flat-start as it was made.")
    pdfs: dict[str, np.ndarray] = {}
    if ali_dir is None:
        labels = _transcribed(archive, lang, Path(feats_dir), model.hmm)
    else:
        old, states = _alignments(archive, lang, Path(ali_dir))
        labels, pdfs = _labelled(states, old, model.hmm, model.tolerance, model.subsampling)
    fitting, left_out = _fitting(labels, archive, model.denominator, model.subsampling)
    facts = {**model.facts, "utterances": len(fitting), "left_out": left_out}
    chain = replace(model, supervision=Supervision.of(fitting), facts=facts)
    chain.save(chain_dir, fingerprint, {name: pdfs[name] for name in fitting if name in pdfs})
    return ChainReport(model.hmm.num_pdfs, f"that of {model_dir}", model.denominator, len(fitting), left_out)


def _fitting(
    labels: dict[str, LabelGraph], archive: FeatureArchive, denominator: ChainGraph, subsampling: int
) -> tuple[dict[str, LabelGraph], dict[str, list[str]]]:
    """The label graphs that some path fits, and the other utterances of FEATS by the reason (InputError: all of them).

    With windows, whether the denominator allows the phones is the same for all shifted copies; without, the last of
    these, which has the fewest frames, decides.
    """
    composer = Composer(denominator)

    def allowed(graph: LabelGraph) -> bool:
        shift = min(subsampling, graph.frames) - 1
        return bool(composer.numerator(graph, shift, graph.frames - shift, subsampling).final_S.any())

    unknown = set(archive) - set(labels)
    short = {name for name, graph in labels.items() if not graph.fits(subsampling)}
    foreign = {name for name, graph in labels.items() if name not in short and not allowed(graph)}
    reasons = {"without alignment or phones": unknown, "too short": short, "not in the denominator": foreign}
    left_out = {why: sorted(names) for why, names in reasons.items() if names}
    fitting = {name: graph for name, graph in labels.items() if name not in short | foreign}
    if not fitting:
        counts = ", ".join(f"{len(names)} {why}, e.g. {names[0]}" for why, names in left_out.items())
        raise InputError(f"no utterance can be used: {counts}", "Check that alignments, transcripts and lexicon fit.")
    return fitting, left_out


_Made = tuple[HmmModel, Iterator[tuple[int, ...]], dict[str, LabelGraph], dict[str, np.ndarray]]


def _aligned(
    archive: FeatureArchive, lang: Lang, ali_dir: Path, options: ChainOptions, tree_options: TreeOptions
) -> _Made:
    """Model, phone sequences, label graphs and pdfs of frames from state alignments."""
    old, states = _alignments(archive, lang, ali_dir)
    if options.needs_tree:
        hmm = tied_model(archive, states, old, options, tree_options)
    else:
        hmm = chain_model(lang.phone_names, lang.silence, options.context)
    labels, pdfs = _labelled(states, old, hmm, options.tolerance, options.subsampling)
    return hmm, phone_sequences(states.values(), old), labels, pdfs


def _alignments(archive: FeatureArchive, lang: Lang, ali_dir: Path) -> tuple[HmmModel, dict[str, np.ndarray]]:
    """The Bakis model of ALI, and the phone-states of each utterance."""
    old = HmmModel.load(ali_dir)
    old.require_bakis(ali_dir)
    require_same_phones(old, lang)
    states = read_state_alignments(ali_dir, archive, old)
    if not states:
        raise InputError(
            f"{ali_dir} holds no alignment of these features", "Name the ALI folder that was made of them."
        )
    return old, states


def _labelled(
    states: dict[str, np.ndarray], old: HmmModel, hmm: HmmModel, tolerance: int, subsampling: int
) -> tuple[dict[str, LabelGraph], dict[str, np.ndarray]]:
    """Label graph and pdfs of frames of each alignment."""
    labels = {name: from_alignment(state_T, old, hmm, tolerance) for name, state_T in states.items()}
    pdfs = {name: pdf_alignment(state_T, old, hmm, subsampling) for name, state_T in states.items()}
    return labels, pdfs


def _flat_start(
    archive: FeatureArchive, lang: Lang, feats_dir: Path, options: ChainOptions, tree_options: TreeOptions
) -> _Made:
    """Model, phone sequences and label graphs from transcripts alone."""
    if options.needs_tree:
        raise OptionError(
            f"option chain.tied=true with chain.context={options.context} needs alignments to grow a tree on",
            "Set chain=flat_start or chain.tied=false, or give --ali.",
        )
    transcripts = read_training_text(feats_dir, archive, lang)
    hmm = chain_model(lang.phone_names, lang.silence, options.context)
    labels = _transcribed(archive, lang, feats_dir, hmm)
    drawn = (sequence for name in transcripts for sequence in drawn_phones(name, transcripts[name], lang, options))
    return hmm, drawn, labels, {}


def _transcribed(archive: FeatureArchive, lang: Lang, feats_dir: Path, hmm: HmmModel) -> dict[str, LabelGraph]:
    """Label graph of each transcript that has phones."""
    transcripts = read_training_text(feats_dir, archive, lang)
    graphs = {name: from_transcript(words, lang, hmm, archive.num_frames(name)) for name, words in transcripts.items()}
    return {name: graph for name, graph in graphs.items() if graph is not None}
