"""Kaldi data directories to utterances and back: wav.scp (or feats.scp), optional segments, text, utt2spk, spk2utt."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from asr_hf.data.table import Entry, Fault, Table, read_table, scan_table, write_table
from asr_hf.errors import InputError


@dataclass(frozen=True)
class Utterance:
    """One utterance: who says which words where in which recording.

    Args:
        recording: an audio file, or a command ending in `|` where pipes are allowed.
        start: seconds into the recording.
        end: seconds into the recording; None is its end.
    """

    id: str
    speaker: str
    words: tuple[str, ...]
    recording: str
    start: float = 0.0
    end: float | None = None

    @property
    def is_piped(self) -> bool:
        return self.recording.endswith("|")


@dataclass
class Scan:
    """What a data directory holds: its tables, the utterances without structural fault, and the faults."""

    tables: dict[str, Table] = field(default_factory=dict)
    utterances: list[Utterance] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)


def scan_data_dir(path: str | Path, source: str = "wav.scp", allow_pipes: bool = False) -> Scan:
    """Read the text files of a data directory, without opening audio, and list every fault among them.

    Args:
        source: where the utterances come from, `wav.scp` (with `segments` if there is one) or `feats.scp`.
        allow_pipes: take recordings that are commands, `sph2pipe … |`.
    """
    folder = Path(path)
    scan = Scan()
    if not folder.is_dir():
        scan.faults.append(Fault(str(folder), 0, "is no folder", "Name a Kaldi data directory."))
        return scan
    names = [source, "text", "utt2spk"]
    names += [name for name in ("segments", "spk2utt") if (folder / name).exists()]
    for name in names:
        scan.tables[name], faults = scan_table(folder / name, must_be_sorted=True)
        scan.faults += faults
        if not scan.tables[name] and not faults:
            scan.faults.append(Fault(str(folder / name), 0, "holds no line", "Fill it, or name another directory."))
    if source == "feats.scp":
        scan.tables.pop("segments", None)
    _check_ids(folder, source, scan)
    _check_speakers(folder, source, scan)
    _check_recordings(folder, source, allow_pipes, scan)
    spans = _read_spans(folder, source, scan)
    text, utt2spk = scan.tables["text"], scan.tables["utt2spk"]
    for utt, (recording, start, end) in sorted(spans.items()):
        if utt in text and utt in utt2spk:
            words = tuple(text[utt].value.split())
            found = locate(recording, folder) if source == "wav.scp" else recording
            scan.utterances.append(Utterance(utt, utt2spk[utt].value, words, found, start, end))
    scan.faults.sort(key=lambda fault: (fault.file, fault.line))
    return scan


def read_data_dir(path: str | Path, allow_pipes: bool = False) -> list[Utterance]:
    """The utterances of a Kaldi data directory, sorted by id; audio is not opened.

    A relative path in wav.scp is looked for from the working directory, as Kaldi does, then from the data directory.

    Raises:
        InputError: the first fault, with file and line.
    """
    scan = scan_data_dir(path, allow_pipes=allow_pipes)
    if scan.faults:
        more = f" ({len(scan.faults) - 1} more)" if len(scan.faults) > 1 else ""
        first = scan.faults[0].error()
        raise InputError(first.what + more, f"{first.remedy} `asr-hf validate {path}` lists every fault.")
    return scan.utterances


def write_data_dir(path: str | Path, utterances: Iterable[Utterance]) -> None:
    """Write wav.scp, text, utt2spk, spk2utt, and segments if any utterance is a part of its recording.

    Raises:
        InputError: two utterances with one id.
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    ordered = sorted(utterances, key=lambda utterance: utterance.id)
    for first, second in pairwise(ordered):
        if first.id == second.id:
            raise InputError(f"{folder}: two utterances have the id '{first.id}'", "Give each its own id.")
    (folder / "segments").unlink(missing_ok=True)
    if any(utterance.start > 0 or utterance.end is not None for utterance in ordered):
        names = _recording_ids(ordered)
        write_table(folder / "wav.scp", ((names[recording], recording) for recording in names))
        write_table(
            folder / "segments",
            ((u.id, f"{names[u.recording]} {float(u.start)} {-1 if u.end is None else float(u.end)}") for u in ordered),
        )
    else:
        write_table(folder / "wav.scp", ((u.id, u.recording) for u in ordered))
    write_transcripts(folder / "text", {u.id: u.words for u in ordered})
    write_speakers(folder, {u.id: u.speaker for u in ordered})


def write_transcripts(path: str | Path, transcripts: dict[str, tuple[str, ...]]) -> None:
    """Write a `text` file: an utterance and its words a line."""
    write_table(path, ((utt, " ".join(words)) for utt, words in transcripts.items()))


def write_speakers(folder: str | Path, utt2spk: dict[str, str]) -> None:
    """Write `utt2spk` and `spk2utt`."""
    write_table(Path(folder) / "utt2spk", utt2spk.items())
    spk2utt = invert(utt2spk)
    write_table(Path(folder) / "spk2utt", ((speaker, " ".join(utts)) for speaker, utts in spk2utt.items()))


def invert(utt2spk: dict[str, str]) -> dict[str, list[str]]:
    """Speaker -> its utterances, both sorted."""
    spk2utt: dict[str, list[str]] = defaultdict(list)
    for utt in sorted(utt2spk):
        spk2utt[utt2spk[utt]].append(utt)
    return dict(sorted(spk2utt.items()))


def read_transcripts(path: str | Path) -> dict[str, tuple[str, ...]]:
    """Utterance -> words of a `text` file, sorted by utterance; an empty transcript (a hypothesis) is ().

    Raises:
        InputError: unreadable, not UTF-8, duplicate ids.
    """
    return {utt: tuple(entry.value.split()) for utt, entry in sorted(read_table(path).items())}


def read_text(folder: str | Path) -> dict[str, tuple[str, ...]]:
    """Utterance -> words of a data directory or FEATS folder."""
    return read_transcripts(Path(folder) / "text")


def read_utt2spk(folder: str | Path) -> dict[str, str]:
    """Utterance -> speaker of a data directory or FEATS folder, sorted by utterance."""
    path = Path(folder) / "utt2spk"
    table = sorted(read_table(path).items())
    for utt, entry in table:
        if not entry.value:
            raise Fault(str(path), entry.line, f"utterance '{utt}' has no speaker", "Add its speaker.").error()
    return {utt: entry.value for utt, entry in table}


def _check_ids(folder: Path, source: str, scan: Scan) -> None:
    """Every utterance has a transcript and a speaker, and no transcript or speaker lacks its utterance."""
    origin = "segments" if "segments" in scan.tables else source
    for name, lacks in (("text", "no transcript"), ("utt2spk", "no speaker")):
        if not scan.tables[name]:
            continue  # missing or empty: already said once
        for utt, entry in scan.tables[origin].items():
            if utt not in scan.tables[name]:
                scan.faults.append(
                    Fault(
                        str(folder / origin),
                        entry.line,
                        f"utterance '{utt}' has {lacks} in {name}",
                        f"Add it to {name}, or remove the utterance everywhere.",
                    )
                )
        for utt, entry in scan.tables[name].items():
            if scan.tables[origin] and utt not in scan.tables[origin]:
                scan.faults.append(
                    Fault(
                        str(folder / name),
                        entry.line,
                        f"utterance '{utt}' is not in {origin}",
                        f"Add it to {origin}, or remove this line.",
                    )
                )
            if not entry.value:
                scan.faults.append(
                    Fault(str(folder / name), entry.line, f"utterance '{utt}' has {lacks}", "Complete the line.")
                )


def _check_speakers(folder: Path, source: str, scan: Scan) -> None:
    """Every utterance has one speaker; spk2utt, where there is one, says the same as utt2spk."""
    for utt, entry in scan.tables["utt2spk"].items():
        if len(entry.value.split()) > 1:
            message = f"utterance '{utt}' has several speakers, '{entry.value}'"
            scan.faults.append(Fault(str(folder / "utt2spk"), entry.line, message, "A line is: utterance speaker."))
    if not scan.tables.get("spk2utt"):
        return
    wanted = invert({utt: entry.value for utt, entry in scan.tables["utt2spk"].items() if entry.value})
    without = set(scan.tables.get("segments", scan.tables[source])) - set(scan.tables["utt2spk"])  # already said
    remedy = "Remove spk2utt (it is optional) or make it from utt2spk."
    for speaker, entry in scan.tables["spk2utt"].items():
        if sorted(set(entry.value.split()) - without) != wanted.pop(speaker, []):
            message = f"the utterances of speaker '{speaker}' are not those of utt2spk"
            scan.faults.append(Fault(str(folder / "spk2utt"), entry.line, message, remedy))
    for speaker in wanted:
        scan.faults.append(Fault(str(folder / "spk2utt"), 0, f"speaker '{speaker}' of utt2spk is missing", remedy))


def _check_recordings(folder: Path, source: str, allow_pipes: bool, scan: Scan) -> None:
    """Every recording names something, and no command where commands are not allowed."""
    for key, entry in scan.tables[source].items():
        file = str(folder / source)
        if not entry.value:
            scan.faults.append(Fault(file, entry.line, f"'{key}' names no file", "Complete the line."))
        elif entry.value.endswith("|") and not allow_pipes:
            remedy = "Convert the audio to files, or set features.allow_pipes=true if you trust the command."
            scan.faults.append(Fault(file, entry.line, f"'{key}' is read through a pipe", remedy))


def _read_spans(folder: Path, source: str, scan: Scan) -> dict[str, tuple[str, float, float | None]]:
    """Utterance -> (recording, start, end) in seconds, from segments or else one utterance a recording."""
    recordings = scan.tables[source]
    if "segments" not in scan.tables:
        return {utt: (entry.value, 0.0, None) for utt, entry in recordings.items() if entry.value}
    spans: dict[str, tuple[str, float, float | None]] = {}
    for utt, entry in scan.tables["segments"].items():
        span, message = _parse_segment(entry, recordings)
        if span is None:
            remedy = "A line is: utterance recording start end, in seconds (end -1: to the end of the recording)."
            scan.faults.append(Fault(str(folder / "segments"), entry.line, f"utterance '{utt}': {message}", remedy))
        else:
            spans[utt] = span
    return spans


def _parse_segment(entry: Entry, recordings: Table) -> tuple[tuple[str, float, float | None] | None, str]:
    fields = entry.value.split()
    if len(fields) != 3:
        return None, f"{len(fields) + 1} columns, not 4"
    recording = fields[0]
    try:
        start, end = float(fields[1]), float(fields[2])
    except ValueError:
        return None, f"'{fields[1]} {fields[2]}' are no times"
    if recording not in recordings:
        return None, f"recording '{recording}' is not in wav.scp"
    if not 0 <= start < float("inf"):
        return None, f"start {start:g} s is not a time in the recording"
    if end == -1:
        return (recordings[recording].value, start, None), ""
    if not start < end < float("inf"):
        return None, f"start {start:g} s is not before end {end:g} s"
    return (recordings[recording].value, start, end), ""


def locate(recording: str, folder: str | Path) -> str:
    """The file of a wav.scp line: a relative path is meant from the working directory, else from the data directory."""
    if recording.endswith("|") or Path(recording).exists():
        return recording
    beside = Path(folder) / recording
    return str(beside) if beside.exists() else recording


def _recording_ids(utterances: list[Utterance]) -> dict[str, str]:
    """Recording -> its id in wav.scp: the stem of the file, or where stems collide the whole path."""
    paths = sorted({utterance.recording for utterance in utterances})
    stems = [Path(path).stem for path in paths]
    if len(set(stems)) == len(stems) and not any(" " in stem for stem in stems):
        return dict(zip(paths, stems, strict=True))
    return {path: "_".join(path.replace("/", " ").split()) for path in paths}
