"""Every fault of a data directory, with file and line: its text files, its audio, and words that a lexicon lacks."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from asr_hf.data.archive import FeatureArchive
from asr_hf.data.audio import read_audio, sampling_rate
from asr_hf.data.features import FeatureOptions, num_frames
from asr_hf.data.kaldi_dir import Scan, Utterance, locate, scan_data_dir
from asr_hf.data.progress import track
from asr_hf.data.table import Fault, scan_table
from asr_hf.errors import InputError

__all__ = ["Fault", "Inspection", "inspect", "validate"]


@dataclass(frozen=True)
class Inspection:
    """The faults of a data directory, and its size: utterances, speakers, seconds of audio."""

    faults: list[Fault]
    utterances: int
    speakers: int
    seconds: float


def validate(path: str | Path, lexicon: str | Path | None = None, options: FeatureOptions | None = None) -> list[Fault]:
    """Every fault of a data directory, by file and line; see `inspect`."""
    return inspect(path, lexicon, options).faults


def inspect(path: str | Path, lexicon: str | Path | None = None, options: FeatureOptions | None = None) -> Inspection:
    """Examine a data directory and read all its audio, or the archives of a FEATS folder (feats.scp, no wav.scp).

    Args:
        lexicon: a file whose lines begin with a word; transcript words that it lacks are faults.
        options: the sampling rate wanted (None: the most common one of the directory), whether pipes are allowed, and
            the length of the window that an utterance must at least have.
    """
    options = options or FeatureOptions()
    folder = Path(path)
    has_features_only = (folder / "feats.scp").exists() and not (folder / "wav.scp").exists()
    scan = scan_data_dir(folder, "feats.scp" if has_features_only else "wav.scp", options.allow_pipes)
    faults = list(scan.faults)
    if has_features_only:
        more, seconds = _feature_faults(folder, scan, options)
    else:
        more, seconds = _audio_faults(folder, scan, options)
    faults += more
    if lexicon is not None:
        faults += _missing_words(folder, scan, Path(lexicon))
    faults.sort(key=lambda fault: (fault.file, fault.line))
    speakers = {utterance.speaker for utterance in scan.utterances}
    return Inspection(faults, len(scan.utterances), len(speakers), seconds)


def _audio_faults(folder: Path, scan: Scan, options: FeatureOptions) -> tuple[list[Fault], float]:
    rates, faults = _recording_rates(folder, scan, options.allow_pipes)
    wanted = options.sample_rate
    if wanted is None and rates:
        wanted = Counter(rates.values()).most_common(1)[0][0]
    lines = {locate(entry.value, folder): entry.line for entry in scan.tables.get("wav.scp", {}).values()}
    for recording, rate in rates.items():
        if rate != wanted:
            message = f"{recording} is sampled at {rate} Hz, not {wanted}"
            remedy = "Resample it: one rate in a directory."
            faults.append(Fault(str(folder / "wav.scp"), lines[recording], message, remedy))
    origin = "segments" if "segments" in scan.tables else "wav.scp"
    readable = [utterance for utterance in scan.utterances if utterance.recording in rates]
    seconds = 0.0
    for utterance in track(readable, len(readable), "audio"):
        try:
            seconds += _check_utterance(utterance, options)
        except InputError as error:
            line = scan.tables[origin][utterance.id].line
            message = f"utterance '{utterance.id}': {error.what}"
            faults.append(Fault(str(folder / origin), line, message, error.remedy))
    return faults, seconds


def _recording_rates(folder: Path, scan: Scan, allow_pipes: bool) -> tuple[dict[str, int], list[Fault]]:
    """Recording -> sampling rate in Hz of those that can be opened, and the faults of the others."""
    rates: dict[str, int] = {}
    faults: list[Fault] = []
    for entry in scan.tables.get("wav.scp", {}).values():
        if not entry.value or (entry.value.endswith("|") and not allow_pipes):
            continue  # among the faults of the scan
        recording = locate(entry.value, folder)
        try:
            rates[recording] = sampling_rate(recording)
        except InputError as error:
            faults.append(Fault(str(folder / "wav.scp"), entry.line, error.what, error.remedy))
    return rates, faults


def _check_utterance(utterance: Utterance, options: FeatureOptions) -> float:
    """Seconds of an utterance; raises InputError where it is unreadable, empty, silent or too short."""
    samples, rate = read_audio(utterance)
    if not samples.any():
        raise InputError("every sample is zero" if len(samples) else "no samples", "Remove it or mend its audio.")
    if num_frames(len(samples), rate, options) == 0:
        length = 1000 * len(samples) / rate
        what = f"{length:.1f} ms are shorter than a window of {options.frame_length:g} ms"
        raise InputError(what, "Remove it or mend its times.")
    return len(samples) / rate


def _feature_faults(folder: Path, scan: Scan, options: FeatureOptions) -> tuple[list[Fault], float]:
    faults: list[Fault] = []
    frames = 0
    try:
        archive = FeatureArchive(folder / "feats.scp")
    except InputError as error:
        return [Fault(str(folder / "feats.scp"), 0, error.what, error.remedy)], 0.0
    for utterance in scan.utterances:
        try:
            archive.check_finite(utterance.id)
            frames += archive.num_frames(utterance.id)
        except InputError as error:
            line = scan.tables["feats.scp"][utterance.id].line
            faults.append(Fault(str(folder / "feats.scp"), line, error.what, error.remedy))
    return faults, frames * options.frame_shift / 1000


def _missing_words(folder: Path, scan: Scan, lexicon: Path) -> list[Fault]:
    """One fault for every transcript word that the lexicon lacks, at its first line."""
    known, faults = scan_table(lexicon, unique=False)
    if faults:
        return faults
    first_line: dict[str, int] = {}
    count: Counter[str] = Counter()
    for entry in scan.tables.get("text", {}).values():
        for word in entry.value.split():
            first_line.setdefault(word, entry.line)
            count[word] += 1
    remedy = f"Add its pronunciation to {lexicon}."
    return [
        Fault(str(folder / "text"), line, f"word '{word}' ({count[word]} times) is not in the lexicon", remedy)
        for word, line in first_line.items()
        if word not in known
    ]
