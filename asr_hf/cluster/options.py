"""How a run uses its MPI ranks."""

from dataclasses import dataclass

from asr_hf.options import option, require, require_choice

DEVICES = ("auto", "cpu", "cuda")


@dataclass
class ClusterOptions:
    """How a run uses its MPI ranks."""

    dedicated_master: bool = option(False, "reserve rank 0 for the master's vectors: it is dealt no minibatches")
    threads: int = option(1, "threads per rank; more than one on contended cores is slower")
    device: str = option("auto", "auto (a GPU for each rank of a host, if there are any), cpu or cuda")
    patience: float = option(600.0, "seconds that the master waits for a rank before it is said to hold up the run")
    stalled: str = option("end", "what is done then: end the run, or kill that rank and go on (needs --with-ft ulfm)")
    master_patience: float = option(7200.0, "seconds that a rank waits for the master before it ends the run")

    def __post_init__(self) -> None:
        require_choice("cluster.device", self.device, DEVICES)
        require(self.patience > 0, "cluster.patience", self.patience, "must be positive")
        require_choice("cluster.stalled", self.stalled, ("end", "kill"))
        require(self.master_patience > 0, "cluster.master_patience", self.master_patience, "must be positive")
        require(self.threads >= 1, "cluster.threads", self.threads, "must be at least 1")
