"""N-gram language models from kaldingram's Kneser-Ney counts, and the acceptor G by kaldilm."""

import contextlib
import io
import logging
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import kaldifst
from kaldingram.prune import ArpaParser, prune
from kaldingram.train import NgramCounts

from asr_hf.errors import InputError
from asr_hf.hmm.fst import read_fst

_UNSEEN = "<unseen>"  # the one context in which a word without occurrences is counted


def estimate(
    sentences: Iterable[tuple[str, ...]], vocabulary: Iterable[str], order: int, prune_threshold: float, arpa: Path
) -> None:
    """Estimate an interpolated Kneser-Ney n-gram over a whole vocabulary and write it as ARPA.

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
        _interpolate(counts)
        with open(arpa, "w", encoding="utf-8") as file:
            counts.print_as_arpa(file)
        if prune_threshold > 0:
            _prune(arpa, prune_threshold)


def _interpolate(counts: NgramCounts) -> None:
    """Kneser-Ney with interpolation: p(w|h) = f(w|h) + γ(h) p(w|h′), h′ one word shorter, γ(h) = 1 − Σ_w f(w|h).

    Chen & Goodman 1998, equation 24; f is kaldingram's discounted relative frequency. γ is the back-off weight. A seen
    n-gram is never less likely than by backing off, so that the best path through G has the model's own probability;
    kaldingram's own back-off weights exceed one where few words are unseen.
    """
    for after in counts.counts[counts.ngram_order - 1].values():
        after.word_to_bow = dict.fromkeys(after.word_to_f)
    for order in range(1, counts.ngram_order):
        for after in counts.counts[order - 1].values():
            after.word_to_bow = dict.fromkeys(after.word_to_f)
        for history, after in counts.counts[order].items():
            gamma = 1.0 - sum(after.word_to_f.values())
            lower = counts.counts[order - 1][history[1:]].word_to_f
            after.word_to_f = {word: f + gamma * lower[word] for word, f in after.word_to_f.items()}
            counts.counts[order - 1][history[:-1]].word_to_bow[history[-1]] = gamma


def _prune(arpa: Path, threshold: float) -> None:
    parser = ArpaParser()
    logging.getLogger().setLevel(max(logging.getLogger().level, logging.WARNING))
    model = parser.loadf(str(arpa), encoding="utf-8")[0]
    prune(model, threshold, 2)
    parser.dumpf(model, str(arpa), encoding="utf-8")


def arpa_to_acceptor(arpa: Path, words_txt: Path, backoff: str) -> kaldifst.StdVectorFst:
    """G: the ARPA model as an acceptor of word numbers whose back-off arcs read the symbol `backoff`.

    kaldilm runs in a process of its own, because it logs to stderr and aborts on a bad file.

    Raises:
        InputError: kaldilm refuses the file; its own message is quoted.
    """
    with tempfile.TemporaryDirectory() as folder:
        fst = Path(folder) / "G.fst"
        symbols = [f"--disambig-symbol={backoff}", f"--read-symbol-table={words_txt}"]
        command = [sys.executable, "-m", "kaldilm", *symbols, str(arpa), str(fst)]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
        if done.returncode != 0:
            lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
            reason = next((line for line in reversed(lines) if line.startswith("[E]")), "kaldilm failed")
            raise InputError(f"{arpa} is no usable ARPA model: {reason}", "Correct the language model.")
        return read_fst(fst)
