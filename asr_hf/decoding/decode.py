"""Decode a data set into a folder of hypotheses."""

import time
from dataclasses import asdict, dataclass
from pathlib import Path

from asr_hf.decoding.output import write_json, write_text
from asr_hf.decoding.recognize import Task, Workers
from asr_hf.decoding.search import DecodingOptions


@dataclass(frozen=True)
class Summary:
    """How a decoding went.

    Attributes:
        no_path: utterances in which no path survived the search; their hypothesis is empty.
        unfinished: utterances whose best path ends in no final state; their hypothesis is that path.
        seconds: wall time.
        real_time_factor: seconds of scoring and searching, summed over processes, per second of audio.
    """

    utterances: int
    no_path: tuple[str, ...]
    unfinished: tuple[str, ...]
    seconds: float
    real_time_factor: float

    def __str__(self) -> str:
        parts = [f"{self.utterances} utterances in {self.seconds:.1f} s, {self.real_time_factor:.3f} x real time"]
        if self.no_path:
            parts.append(f"{len(self.no_path)} without a surviving path (a wider beam helps): {_some(self.no_path)}")
        if self.unfinished:
            parts.append(f"{len(self.unfinished)} not ending in a final state: {_some(self.unfinished)}")
        return "; ".join(parts)


def decode_directory(
    feats_dir: Path | str,
    graph_dir: Path | str,
    model_dir: Path | str,
    out_dir: Path | str,
    options: DecodingOptions,
    jobs: int = 1,
) -> Summary:
    """Decode every utterance of FEATS; writes OUT/hyp.txt (Kaldi text) and OUT/decode.json (options, Summary).

    hyp.txt has a line for every utterance, with its id alone where nothing was recognised, and is the same for any
    number of jobs.

    Raises:
        InputError: features, graph and model do not belong together, or one of them is damaged.
    """
    begin = time.perf_counter()
    with Workers(Task(str(feats_dir), str(graph_dir), str(model_dir)), jobs) as workers:
        options = options.with_default(workers.recognizer.model.acoustic_scale)
        found = workers.recognize(options)
        audio_seconds = workers.audio_seconds
    summary = Summary(
        len(found),
        tuple(utterance for utterance, (hyp, _) in found.items() if not hyp.survived),
        tuple(utterance for utterance, (hyp, _) in found.items() if hyp.survived and not hyp.reached_final),
        time.perf_counter() - begin,
        sum(seconds for _, seconds in found.values()) / max(audio_seconds, 1e-3),
    )
    out = Path(out_dir)
    write_json(out / "decode.json", {"options": asdict(options), **asdict(summary)})
    lines = [" ".join((utterance, *hyp.words)) + "\n" for utterance, (hyp, _) in found.items()]
    write_text(out / "hyp.txt", "".join(lines))
    return summary


def _some(utterances: tuple[str, ...], limit: int = 5) -> str:
    """The first few names."""
    return ", ".join(utterances[:limit]) + (", …" if len(utterances) > limit else "")
