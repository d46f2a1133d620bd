"""Back-off n-gram language models by kaldingram (Kneser-Ney) and the acceptor G by kaldilm."""

import contextlib
import io
import logging
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import kaldifst
import kaldilm
from kaldingram.prune import ArpaParser, prune
from kaldingram.train import NgramCounts

from asr_hf.errors import InputError
from asr_hf.hmm.fst import read_fst

_UNSEEN = "<unseen>"  # the one context in which a word without occurrences is counted
_NEVER = 1e-99  # kaldingram's zero probability


def estimate(
    sentences: Iterable[tuple[str, ...]], vocabulary: Iterable[str], order: int, prune_threshold: float, arpa: Path
) -> None:
    """Estimate an n-gram over a whole vocabulary and write it as ARPA.

    Kneser-Ney unigrams count the contexts of a word. A word of the vocabulary that never occurs is given one context,
    so that it has the mass of the rarest word seen. The probabilities after every history sum to one.

    Args:
        sentences: training transcripts.
        vocabulary: every word that must have mass.
        order: n, at least 2.
        prune_threshold: relative-entropy pruning (Stolcke 1998); 0 keeps every n-gram.
        arpa: the file to write.
    """
    counts = NgramCounts(order)
    seen: set[str] = set()
    with contextlib.redirect_stderr(io.StringIO()):  # kaldingram draws progress bars
        for sentence in sentences:
            counts.add_raw_counts_from_line(" ".join(sentence))
            seen.update(sentence)
        for word in sorted(set(vocabulary) - seen):
            counts.add_count((), word, _UNSEEN, 1)
        counts.cal_discounting_constants()
        counts.cal_f()
        complete = _renormalise_complete_histories(counts)
        counts.cal_bow()
        for history in complete:
            counts.counts[len(history) - 1][history[:-1]].word_to_bow[history[-1]] = _NEVER
        with open(arpa, "w", encoding="utf-8") as file:
            counts.print_as_arpa(file)
        if prune_threshold > 0:
            _prune(arpa, prune_threshold)


def _renormalise_complete_histories(counts: NgramCounts) -> list[tuple[str, ...]]:
    """Histories after which every possible word was seen: they cannot back off, so their discount is given back.

    kaldingram leaves such a history a back-off weight of one or of rounding noise, which G would take for a free path.
    """
    complete = []
    for order in range(1, counts.ngram_order):
        for history, after in counts.counts[order].items():
            lower = counts.counts[order - 1][history[1:]].word_to_f
            if sum(lower[word] for word in after.word_to_f) > 1 - 1e-9:
                total = sum(after.word_to_f.values())
                after.word_to_f = {word: f / total for word, f in after.word_to_f.items()}
                complete.append(history)
    return complete


def _prune(arpa: Path, threshold: float) -> None:
    parser = ArpaParser()
    logging.getLogger().setLevel(max(logging.getLogger().level, logging.WARNING))
    model = parser.loadf(str(arpa), encoding="utf-8")[0]
    prune(model, threshold, 2)
    parser.dumpf(model, str(arpa), encoding="utf-8")


@contextlib.contextmanager
def _native_stderr_to(file: io.BufferedRandom) -> Iterator[None]:
    """Send what C++ writes to file descriptor 2 into a file."""
    sys.stderr.flush()
    saved = os.dup(2)
    try:
        os.dup2(file.fileno(), 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def arpa_to_acceptor(arpa: Path, words_txt: Path, backoff: str) -> kaldifst.StdVectorFst:
    """G: the ARPA model as an acceptor of word numbers whose back-off arcs read the symbol `backoff`.

    Raises:
        InputError: kaldilm refuses the file; its own message is quoted.
    """
    with tempfile.TemporaryDirectory() as folder, open(Path(folder) / "log", "w+b") as log:
        fst = Path(folder) / "G.fst"
        try:
            with _native_stderr_to(log):
                kaldilm.arpa2fst(str(arpa), str(fst), disambig_symbol=backoff, read_symbol_table=str(words_txt))
        except RuntimeError:
            log.seek(0)
            lines = log.read().decode("utf-8", "replace").strip().splitlines() or ["no message"]
            raise InputError(f"{arpa} is no usable ARPA model: {lines[-1]}", "Correct the language model.") from None
        return read_fst(fst)
