"""Word errors of a comparison's models: scales tuned on dev and frozen, then dev and test decoded and scored."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from asr_hf.bench.compare_runs import kept
from asr_hf.decoding.decode import decode_directory
from asr_hf.decoding.score_report import score_directory
from asr_hf.decoding.search import DecodingOptions
from asr_hf.decoding.tune import tune


@dataclass(frozen=True)
class Decoding:
    """What is decoded with what: GRAPH, the FEATS of dev and test with their transcripts, and the options."""

    graph: str
    dev: str
    test: str
    options: DecodingOptions


def word_errors(run: Path, decoding: Decoding, jobs: int) -> dict[str, Any]:
    """acoustic_scale, word_penalty, and of `dev` and `test` errors, words and those of each speaker.

    Writes RUN/decode. A repeat with the same folders and options takes what RUN/decode/words.json keeps.
    """
    return kept(run / "decode" / "words.json", asdict(decoding), lambda: _decode(run, decoding, jobs))


def _decode(run: Path, decoding: Decoding, jobs: int) -> dict[str, Any]:
    out = run / "decode"
    tuned = tune(decoding.dev, decoding.graph, run, out, decoding.options, jobs=jobs)
    options = decoding.options.at(tuned.acoustic_scale, tuned.word_penalty)
    found: dict[str, Any] = {"acoustic_scale": tuned.acoustic_scale, "word_penalty": tuned.word_penalty}
    for name, feats in (("dev", decoding.dev), ("test", decoding.test)):
        decode_directory(feats, decoding.graph, run, out / name, options, jobs)
        score = score_directory(feats, out / name, out / name)
        speakers = {speaker: [counts.errors, counts.words] for speaker, counts in sorted(score.speakers.items())}
        found[name] = {"errors": score.totals.errors, "words": score.totals.words, "speakers": speakers}
    return found
