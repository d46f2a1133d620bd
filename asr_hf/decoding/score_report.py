"""The score as a text for people, in the manner of sclite, and as JSON."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from asr_hf.data.kaldi_dir import read_text, read_transcripts, read_utt2spk
from asr_hf.decoding.output import write_json, write_text
from asr_hf.decoding.score import GAP, Counts, Score, score

SHOWN = 20  # confusions, insertions and deletions listed in the text


def totals_line(score: Score) -> str:
    """One line: `WER 5.30 % [3.60, 7.00]: 41 errors in 773 words (30 sub, 6 del, 5 ins), 130 utterances`."""
    t = score.totals
    low, high = score.ci95
    return (
        f"WER {score.wer:.2f} % [{low:.2f}, {high:.2f}]: {t.errors} errors in {t.words} words "
        f"({t.substitutions} sub, {t.deletions} del, {t.insertions} ins), {t.utterances} utterances"
    )


def score_json(score: Score) -> dict[str, Any]:
    """Everything but the alignments, as numbers; WER and interval in per cent."""
    return {
        "wer": score.wer,
        "ci95": list(score.ci95),
        "ci95_method": "bootstrap over utterances (Bisani & Ney 2004), kaldialign, 10000 replications, seed 0",
        **_counts(score.totals),
        "speakers": {speaker: {"wer": c.wer, **_counts(c)} for speaker, c in sorted(score.speakers.items())},
        "confused_words": [[ref, hyp, n] for (ref, hyp), n in ranked(score.confusions)],
        "inserted_words": [[word, n] for word, n in ranked(score.insertions)],
        "deleted_words": [[word, n] for word, n in ranked(score.deletions)],
    }


def score_text(score: Score) -> str:
    """Totals, a table of speakers, the worst confusions, insertions and deletions, and every utterance aligned."""
    parts = [
        totals_line(score),
        "The interval is the 95 % bootstrap over utterances (Bisani & Ney 2004).\n",
        _speaker_table(score),
        _listing("confusions (reference -> recognised)", {f"{r} -> {h}": n for (r, h), n in score.confusions.items()}),
        _listing("insertions", score.insertions),
        _listing("deletions", score.deletions),
        "aligned utterances (S substitution, D deletion, I insertion)\n",
        *(_aligned(utterance, score) for utterance in sorted(score.alignments)),
    ]
    return "\n".join(parts)


def ranked(counter: Counter[Any]) -> list[tuple[Any, int]]:
    """Most frequent first; equals in alphabetical order."""
    return sorted(counter.items(), key=lambda item: (-item[1], item[0]))


def _counts(counts: Counts) -> dict[str, int]:
    return {"errors": counts.errors, **vars(counts)}


def _per_cent(count: int, words: int) -> str:
    return f"{100 * count / words:6.2f}" if words else "     -"


def _speaker_table(score: Score) -> str:
    width = max(len("speaker"), *(len(speaker) for speaker in score.speakers))
    head = f"{'speaker':{width}}   utts  words   corr    sub    del    ins    err  s.err"
    rows = [head, "-" * len(head)]
    for name, c in [*sorted(score.speakers.items()), ("all", score.totals)]:
        shares = (c.correct, c.substitutions, c.deletions, c.insertions, c.errors)
        cells = " ".join(_per_cent(n, c.words) for n in shares)
        rows.append(
            f"{name:{width}} {c.utterances:6d} {c.words:6d} {cells} {_per_cent(c.utterances_wrong, c.utterances)}"
        )
    rows.insert(-1, "-" * len(head))
    return "\n".join(rows) + "\n"


def _listing(title: str, counts: Mapping[str, int]) -> str:
    rows = ranked(Counter(counts))
    lines = [f"{title}: {sum(n for _, n in rows)} in all, {len(rows)} different"]
    lines += [f"{n:5d}  {what}" for what, n in rows[:SHOWN]]
    return "\n".join(lines) + "\n"


def _aligned(utterance: str, score: Score) -> str:
    """Reference, hypothesis and kind of error under one another."""
    refs, hyps, marks = [], [], []
    for ref, hyp in score.alignments[utterance]:
        mark = "" if ref == hyp else "I" if ref == GAP else "D" if hyp == GAP else "S"
        width = max(len(ref), len(hyp), 1)
        refs.append(f"{ref or '*' * width:{width}}")
        hyps.append(f"{hyp or '*' * width:{width}}")
        marks.append(f"{mark:{width}}")
    lines = [
        f"{utterance} (speaker {score.speaker_of[utterance]})",
        f"  ref {' '.join(refs)}",
        f"  hyp {' '.join(hyps)}",
    ]
    if any(mark.strip() for mark in marks):
        lines.append(f"      {' '.join(marks)}")
    return "\n".join(line.rstrip() for line in lines) + "\n"


def score_directory(data_dir: Path | str, hyp: Path | str, out_dir: Path | str) -> Score:
    """Score a hyp.txt (or the folder that holds it) against `text` and `utt2spk` of a data directory or FEATS.

    Writes OUT/report.txt and OUT/score.json.

    Raises:
        InputError: see `score`; or a file is missing, damaged or names an utterance twice.
    """
    hyp = Path(hyp) / "hyp.txt" if Path(hyp).is_dir() else Path(hyp)
    result = score(read_text(data_dir), read_transcripts(hyp), read_utt2spk(data_dir))
    write_text(Path(out_dir) / "report.txt", score_text(result))
    write_json(Path(out_dir) / "score.json", score_json(result))
    return result
