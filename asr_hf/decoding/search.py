"""Beam search for the best word sequence of an utterance, by kaldi-decoder.

Shape suffixes: T frames, P pdfs.
"""

from dataclasses import dataclass, replace

import kaldifst  # must be imported before kaldi_decoder

# isort: split
import kaldi_decoder as kd
import numpy as np

from asr_hf.decoding.graph import Graph
from asr_hf.errors import InputError
from asr_hf.options import option, require


@dataclass
class DecodingOptions:
    """The search for the best word sequence; scales are tuned on dev by `asr-hf tune`."""

    acoustic_scale: float | None = option(None, "factor on acoustic log-likelihoods; null: chain models 1, others 0.1")
    word_penalty: float = option(0.0, "cost of every output word (natural log, in scaled units)")
    beam: float = option(13.0, "paths worse than the best by more than this are dropped (in scaled units)")
    max_active: int = option(7000, "at most about so many paths survive a frame")
    min_active: int = option(200, "at least about so many paths survive a frame, whatever the beam")

    def __post_init__(self) -> None:
        scale = self.acoustic_scale
        require(scale is None or 0 < scale < float("inf"), "decoding.acoustic_scale", scale, "must be > 0")
        require(abs(self.word_penalty) < float("inf"), "decoding.word_penalty", self.word_penalty, "must be finite")
        require(self.beam > 0, "decoding.beam", self.beam, "must be > 0")
        require(self.min_active >= 0, "decoding.min_active", self.min_active, "must be >= 0")
        require(self.max_active > 1, "decoding.max_active", self.max_active, "must be > 1")
        require(
            self.min_active <= self.max_active, "decoding.min_active", self.min_active, "must be <= decoding.max_active"
        )

    def with_default(self, acoustic_scale: float) -> "DecodingOptions":
        """These options, with an acoustic scale if they have none."""
        return self if self.acoustic_scale is not None else replace(self, acoustic_scale=acoustic_scale)

    def at(self, acoustic_scale: float, word_penalty: float) -> "DecodingOptions":
        """These options with another acoustic scale and word penalty."""
        return replace(self, acoustic_scale=acoustic_scale, word_penalty=word_penalty)


@dataclass(frozen=True)
class Hypothesis:
    """What the search found: the words and their cost (scaled, natural log).

    `reached_final` is False when no surviving path ends in a final state; the words are then those of the best
    unfinished path, or none (and `cost` infinite) when no path survived.
    """

    words: tuple[str, ...]
    cost: float
    reached_final: bool

    @property
    def survived(self) -> bool:
        return bool(np.isfinite(self.cost))


NO_PATH = Hypothesis((), float("inf"), False)


class Decoder:
    """Best path of utterances through one decoding graph under one set of options.

    Args:
        graph: the decoding graph.
        options: scales and beams; the acoustic scale is set.
    """

    def __init__(self, graph: Graph, options: DecodingOptions) -> None:
        assert options.acoustic_scale is not None
        self.graph, self.scale = graph, options.acoustic_scale
        self._fst = graph.penalised(options.word_penalty)  # held: a search does not keep its FST alive
        self._limits = kd.FasterDecoderOptions(
            beam=options.beam, max_active=options.max_active, min_active=options.min_active
        )

    def decode(self, loglikes_TP: np.ndarray, utterance: str = "(unnamed)") -> Hypothesis:
        """Best path for the acoustic log-likelihoods (T, P) of an utterance.

        Raises:
            InputError: P differs from the graph's number of pdfs, or a log-likelihood is NaN or +infinite.
        """
        if loglikes_TP.ndim != 2 or loglikes_TP.shape[1] != self.graph.num_pdfs:
            raise InputError(
                f"utterance {utterance}: log-likelihoods of shape {loglikes_TP.shape} do not fit {self.graph.name} "
                f"with {self.graph.num_pdfs} pdfs",
                "Decode with a graph that was made for this model.",
            )
        if np.isnan(loglikes_TP).any() or np.isposinf(loglikes_TP).any():
            frame = int(np.argwhere(np.isnan(loglikes_TP) | np.isposinf(loglikes_TP))[0, 0])
            raise InputError(
                f"utterance {utterance}: the log-likelihoods of frame {frame} are not finite",
                "Check its features with asr-hf validate and that the model's training did not diverge.",
            )
        if len(loglikes_TP) == 0:
            return NO_PATH
        scaled_TP = np.ascontiguousarray(loglikes_TP * self.scale, dtype=np.float32)
        # A fresh decoder each time: a used one keeps its hash table, whose size can change the order of ties and
        # thereby make a hypothesis depend on the utterances before it.
        search = kd.FasterDecoder(self._fst, self._limits)
        search.decode(kd.DecodableCtc(scaled_TP))
        found, path = search.get_best_path()
        if not found:
            return NO_PATH
        _, _, labels, weight = kaldifst.get_linear_symbol_sequence(path)
        cost = weight.value1 + weight.value2
        return Hypothesis(tuple(self.graph.words[label] for label in labels), cost, search.reached_final())
