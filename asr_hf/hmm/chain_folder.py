"""The CHAIN folder: what lattice-free MMI trains with, made from alignments or, flat start, from transcripts.

hmm.json (the chain model), features.json, den.safetensors (the denominator graph), supervision.safetensors (the label
graph of every utterance), chain.json (options and sizes) and, from alignments, pdf.scp and pdf.ark: the pdf of every
frame, with which a network can be trained by cross-entropy first.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from asr_hf.data.archive import write_int_vectors
from asr_hf.data.fingerprint import Fingerprint
from asr_hf.data.folder import whole_folder
from asr_hf.errors import InputError
from asr_hf.hmm.chain_graph import ChainGraph
from asr_hf.hmm.model import HmmModel
from asr_hf.hmm.supervision import Supervision

FACTS, DENOMINATOR = "chain.json", "den.safetensors"


@dataclass(frozen=True)
class Chain:
    """A CHAIN folder.

    Attributes:
        hmm, denominator, supervision: the chain model, the graph of all its paths, the label graph of each utterance.
        subsampling: input frames per output frame.
        tolerance: input frames by which windows are wider than the alignment.
        flat_start: whether the labels are of transcripts, without times.
        facts: all of chain.json.
    """

    hmm: HmmModel
    denominator: ChainGraph
    supervision: Supervision
    subsampling: int
    tolerance: int
    flat_start: bool
    facts: dict[str, Any]

    @classmethod
    def load(cls, folder: Path | str) -> "Chain":
        """Read a CHAIN folder (InputError when a file is missing or damaged)."""
        folder = Path(folder)
        hmm = HmmModel.load(folder)
        denominator = ChainGraph.load(folder / DENOMINATOR, hmm.num_pdfs)
        try:
            facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
            subsampling, tolerance = (int(facts["options"][name]) for name in ("subsampling", "tolerance"))
            flat_start = bool(facts["flat_start"])
        except OSError:
            raise InputError(f"{folder / FACTS} is missing", "Name a folder that asr-hf chain wrote.") from None
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{folder / FACTS} is damaged ({error})", "Make its folder again.") from None
        return cls(hmm, denominator, Supervision.load(folder), subsampling, tolerance, flat_start, facts)

    def save(self, folder: Path | str, fingerprint: Fingerprint, pdfs: dict[str, np.ndarray]) -> None:
        """Write a CHAIN folder, whole or not at all, with the features it was made from and the pdfs of frames."""
        with whole_folder(folder, FACTS) as new:
            self.hmm.save(new)
            fingerprint.save(new)
            self.denominator.save(new / DENOMINATOR)
            self.supervision.save(new)
            if pdfs:
                write_int_vectors(new / "pdf", sorted(pdfs.items()), final_dir=folder)
            (new / FACTS).write_text(json.dumps(self.facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
