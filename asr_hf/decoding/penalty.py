"""The word insertion penalty, put into the decoding graph."""

from collections.abc import Iterable

import kaldifst


def add_word_penalty(fst: kaldifst.StdVectorFst, penalty: float, words: Iterable[int]) -> kaldifst.StdVectorFst:
    """A graph that charges `penalty` (natural log units, negative = a reward) for every output word.

    It is the composition with an acceptor of all word sequences, one state and a loop of cost `penalty` a word, so
    that paths, states and arcs stay as they were. `words` are the output labels (0, epsilon, is free).
    """
    if penalty == 0:
        return fst
    charge = kaldifst.StdVectorFst()
    charge.add_state()
    charge.start = 0
    charge.set_final(0, 0.0)
    for word in sorted(set(words) - {0}):
        charge.add_arc(0, kaldifst.StdArc(word, word, penalty, 0))
    by_word = kaldifst.StdVectorFst(fst)  # a copy: arcsort works in place
    kaldifst.arcsort(by_word, sort_type="olabel")
    return kaldifst.compose(by_word, charge)
