"""What an utterance's transcript or alignment allows: graphs over places, each a phone of the transcript in context.

From an alignment: a chain of places, each with a window of frames. From words: every pronunciation and optional
silence, and no windows. Output frame t of a piece that begins at input frame f looks at input frame f + s·t, s being
the subsampling.
Shape suffixes: T frames, K places, E edges, U utterances.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file
from safetensors.numpy import save as to_bytes

from asr_hf.errors import InputError
from asr_hf.hmm.chain import segments
from asr_hf.hmm.lang import Lang
from asr_hf.hmm.model import HmmModel
from asr_hf.hmm.training_graph import END, START, network_in_context, phone_network

FILE = "supervision.safetensors"


@dataclass(frozen=True)
class LabelGraph:
    """The places of one utterance and the ways through them.

    Attributes:
        frames: T, input frames of the utterance.
        unit_K2: int64, entry and loop pdf of each place.
        window_K2: int64, input frames [begin, end) that may be spent at each place.
        starts_K, ends_K: bool, the utterance may begin, may end there.
        edge_E2: int64, from and to, sorted, no pair twice; every edge leads to a higher place.
    """

    frames: int
    unit_K2: np.ndarray
    window_K2: np.ndarray
    starts_K: np.ndarray
    ends_K: np.ndarray
    edge_E2: np.ndarray

    @property
    def places(self) -> int:
        return len(self.unit_K2)

    def fits(self, subsampling: int) -> bool:
        """Whether the output frames of each shifted copy suffice for some way through the places within their windows.

        A copy leaves out the utterance's first 0, 1, … input frames (`data.plan.Sample.shift`).
        """
        return all(self._copy_fits(subsampling, shift) for shift in range(min(subsampling, self.frames)))

    def _copy_fits(self, subsampling: int, shift: int) -> bool:
        last = (self.frames - 1 - shift) // subsampling
        first_K = -((shift - self.window_K2[:, 0]) // subsampling)
        last_K = np.minimum((self.window_K2[:, 1] - 1 - shift) // subsampling, last)
        earliest_K = np.where(self.starts_K & (first_K <= 0), 0, last + 1)
        for source, target in self.edge_E2.tolist():
            arrival = max(earliest_K[source] + 1, first_K[target])
            if earliest_K[source] <= last_K[source] and arrival <= last_K[source] + 1:
                earliest_K[target] = min(earliest_K[target], arrival)
        return bool((self.ends_K & (earliest_K <= last_K) & (last_K == last)).any())


def from_alignment(state_T: np.ndarray, old: HmmModel, hmm: HmmModel, tolerance: int) -> LabelGraph:
    """The phones of a state alignment, each within its frames and `tolerance` input frames before and after.

    Args:
        state_T: phone-states of `old`, a Bakis model.
        hmm: a chain model over the same phones.
        tolerance: input frames.
    """
    frames = len(state_T)
    begin_K, phone_K = segments(state_T, old)
    end_K = np.append(begin_K[1:], frames)
    padded = [0, *phone_K.tolist(), 0]
    units = [hmm.pdfs(*padded[k : k + 3]) for k in range(len(phone_K))]
    window_K2 = np.stack([np.maximum(begin_K - tolerance, 0), np.minimum(end_K + tolerance, frames)], axis=1)
    place_K = np.arange(len(phone_K))
    edge_E2 = np.stack([place_K[:-1], place_K[1:]], axis=1)
    return LabelGraph(frames, np.array(units), window_K2, place_K == 0, place_K == place_K[-1], edge_E2)


def from_transcript(words: tuple[str, ...], lang: Lang, hmm: HmmModel, frames: int) -> LabelGraph | None:
    """All pronunciations of a transcript with optional silences; None where it has no phone at all.

    Args:
        words: those of the lexicon.
        lang: lexicon and phones, those of `hmm`.
        hmm: a chain model.
        frames: input frames of the utterance.
    """
    copies, edges = network_in_context(*phone_network(words, lang), hmm)
    if not copies:
        return None
    units = [hmm.pdfs(max(left, 0), phone, max(right, 0)) for left, phone, right in copies]
    starts_K, ends_K = np.zeros((2, len(copies)), dtype=bool)
    starts_K[[target for source, target, _ in edges if source == START]] = True
    ends_K[[source for source, target, _ in edges if target == END]] = True
    inner = sorted({(source, target) for source, target, _ in edges if source >= 0 and target >= 0})
    window_K2 = np.tile([0, frames], (len(copies), 1))
    return LabelGraph(frames, np.array(units), window_K2, starts_K, ends_K, np.array(inner, np.int64).reshape(-1, 2))


class Supervision(Mapping[str, LabelGraph]):
    """The label graphs of a set of utterances, sorted by name, in one file of concatenated arrays.

    Args:
        names: sorted.
        arrays: those of LabelGraph, concatenated; `frames_U`; `places_U` and `edges_U`, how many each utterance has.
    """

    def __init__(self, names: list[str], arrays: dict[str, np.ndarray]) -> None:
        self._row = {name: row for row, name in enumerate(names)}
        self._arrays = arrays
        self._place = np.cumsum([0, *arrays["places_U"]])
        self._edge = np.cumsum([0, *arrays["edges_U"]])

    @classmethod
    def of(cls, graphs: Mapping[str, LabelGraph]) -> "Supervision":
        names = sorted(graphs)
        arrays = {
            field: np.concatenate([getattr(graphs[name], field) for name in names]) for field in (*_PLACES, _EDGES)
        }
        arrays["frames_U"] = np.array([graphs[name].frames for name in names])
        arrays["places_U"] = np.array([graphs[name].places for name in names])
        arrays["edges_U"] = np.array([len(graphs[name].edge_E2) for name in names])
        return cls(names, arrays)

    def __getitem__(self, name: str) -> LabelGraph:
        row = self._row[name]
        places = slice(self._place[row], self._place[row + 1])
        edges = slice(self._edge[row], self._edge[row + 1])
        fields = {field: self._arrays[field][places] for field in _PLACES}
        return LabelGraph(int(self._arrays["frames_U"][row]), **fields, edge_E2=self._arrays[_EDGES][edges])

    def __iter__(self) -> Iterator[str]:
        return iter(self._row)

    def __len__(self) -> int:
        return len(self._row)

    def save(self, folder: Path | str) -> None:
        """Write supervision.safetensors."""
        names = np.frombuffer("\n".join(self._row).encode(), np.uint8)
        (Path(folder) / FILE).write_bytes(to_bytes({**self._arrays, "names": names}))

    @classmethod
    def load(cls, folder: Path | str) -> "Supervision":
        """Read supervision.safetensors (InputError when it is missing or damaged)."""
        path = Path(folder) / FILE
        try:
            arrays = load_file(path)
            names = arrays.pop("names").tobytes().decode().split("\n")
            supervision = cls(names, arrays)
            sizes = [len(arrays[field]) for field in _PLACES] + [len(arrays[_EDGES]), len(arrays["frames_U"])]
            if sizes != [supervision._place[-1]] * len(_PLACES) + [supervision._edge[-1], len(names)]:
                raise ValueError("arrays of different lengths")
            places_E1 = np.repeat(arrays["places_U"], arrays["edges_U"])[:, None]
            if not ((arrays[_EDGES] >= 0) & (arrays[_EDGES] < places_E1)).all():
                raise ValueError("edges between places that there are not")
        except OSError:
            raise InputError(f"{path} is missing", "Name a folder that asr-hf chain wrote.") from None
        except (KeyError, ValueError, SafetensorError) as error:
            raise InputError(f"{path} is damaged ({error})", "Make its folder again.") from None
        return supervision


_PLACES, _EDGES = ("unit_K2", "window_K2", "starts_K", "ends_K"), "edge_E2"
