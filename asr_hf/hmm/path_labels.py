"""The numerator of the labels of one path through the denominator.

Shape suffixes: T output frames, K places.
"""

import numpy as np

from asr_hf.hmm.chain_graph import Numerator
from asr_hf.hmm.numerator import NO_PATHS, Composer
from asr_hf.hmm.supervision import LabelGraph


def numerator_of_path(composer: Composer, state_T: np.ndarray, enters_T: np.ndarray) -> Numerator:
    """All paths of the denominator with the same labels as a path: the units it enters, and the one it begins in.

    Args:
        composer: of the denominator.
        state_T: its state after each output frame.
        enters_T: whether the frame entered that state, rather than stay in it.
    """
    graph, frames = composer.graph, len(state_T)
    if not frames:
        return NO_PATHS
    begins_T = enters_T.copy()
    begins_T[0] = True
    unit_K2 = np.stack([graph.entry_S, graph.loop_S], axis=1)[state_T[begins_T]]
    place_K = np.arange(len(unit_K2))
    before = int(not enters_T[0])  # a frame before the piece, in the first place, if the path was there already
    begin_K = np.where(place_K > 0, place_K + before, 0)
    window_K2 = np.stack([begin_K, np.full(len(place_K), frames + before)], axis=1)
    edge_E2 = np.stack([place_K[:-1], place_K[1:]], axis=1)
    labels = LabelGraph(frames + before, unit_K2, window_K2, place_K == 0, place_K == place_K[-1], edge_E2)
    return composer.numerator(labels, before, frames, 1)
