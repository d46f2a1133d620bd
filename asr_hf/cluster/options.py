"""How a run uses its MPI ranks."""

from dataclasses import dataclass

from asr_hf.options import option, require


@dataclass
class ClusterOptions:
    """How a run uses its MPI ranks."""

    dedicated_master: bool = option(False, "reserve rank 0 for the master's vectors: it is dealt no minibatches")
    threads: int = option(1, "threads per rank; more than one on contended cores is slower")

    def __post_init__(self) -> None:
        require(self.threads >= 1, "cluster.threads", self.threads, "must be at least 1")
