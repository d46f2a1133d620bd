"""The examination on all ranks: every rank sends its facts to rank 0, which names those that do not answer."""

import dataclasses
import json
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asr_hf.cluster.doctor.checks import Finding, diagnose, judge_links
from asr_hf.cluster.doctor.facts import Facts, facts_of_this_process, launcher_of
from asr_hf.cluster.doctor.guard import Stage, watch

if TYPE_CHECKING:
    from asr_hf.cluster.doctor.links import Link, VectorTimes

FACTS = 1  # tag of a rank's facts
LATER = 5.0  # seconds that the guard leaves rank 0 to name a rank first
NAP = 1e-3


@dataclass(frozen=True)
class Examination:
    """What rank 0 found: findings, every rank's facts, and the links (none with one rank or a fault in the launch)."""

    findings: list[Finding]
    ranks: list[Facts]
    links: list["Link"]
    vector: "VectorTimes | None"

    def save(self, path: Path) -> None:
        """Write all of it as JSON (docs/cluster.md has the fields), beside and renamed."""
        content: dict[str, Any] = dataclasses.asdict(self)
        beside = path.with_name(path.name + ".tmp")
        beside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        os.replace(beside, path)


def examine(folders: Sequence[str], elements: int, timeout: float) -> Examination | None:
    """Examine the launch, from every process that it started; the findings are rank 0's, None elsewhere.

    It goes on in a child of the process that calls it (`guard.watch`).

    Args:
        folders: FEATS folders that every rank must see alike.
        elements: of the vectors that are broadcast and summed.
        timeout: seconds after which a rank that does not answer is named.
    """
    launcher = launcher_of(os.environ)
    stage = watch(f"rank {launcher.rank} of {launcher.size} on {socket.gethostname()}", timeout + LATER)
    stage("loading torch")
    import torch  # noqa: F401  from a file system that may not answer

    stage("starting MPI, for which each rank has to come this far,")
    comm, library, version = _start_mpi()
    rank, size = (comm.Get_rank(), comm.Get_size()) if comm else (0, 1)
    if size == 1 and launcher.rank > 0:
        return None  # one of several that think they are alone; the first of them says so
    stage(f"looking at this machine, its GPUs and {', '.join(folders) or 'no features'}")
    facts = facts_of_this_process(rank, size, library, version, folders)
    if size == 1:
        return Examination(diagnose([facts]), [facts], [], None)
    everybody = _gather(comm, facts, timeout, stage)
    hosts = [one.host for one in everybody] if len(everybody) == size else []
    if rank == 0 and not hosts:
        return Examination(diagnose(everybody), everybody, [], None)
    stage("waiting for rank 0 to hear from all ranks")
    hosts = comm.bcast(hosts, root=0)
    return _measure(comm, everybody, hosts, elements, stage)


def end_all_ranks() -> None:
    """End every rank with status 2, those too that do not answer."""
    from mpi4py import MPI

    MPI.COMM_WORLD.Abort(2)


def _start_mpi() -> tuple[Any, tuple[str, str], str]:
    """(COMM_WORLD, (name, version) of the library, version of mpi4py); (None, ("", reason), "") where none starts."""
    try:
        import mpi4py
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        return None, ("", " ".join(str(error).split())), ""
    name, numbers = MPI.get_vendor()
    return MPI.COMM_WORLD, (name, ".".join(map(str, numbers))), mpi4py.__version__


def _gather(comm: Any, facts: Facts, timeout: float, stage: Stage) -> list[Facts]:
    """The facts of all ranks that answer in time, by rank; the others send theirs and get an empty list."""
    if facts.rank:
        stage("sending what this rank knows to rank 0")
        comm.send(facts, 0, FACTS)
        return []
    stage("waiting for the answers of the other ranks")
    found = {0: facts}
    deadline = time.monotonic() + timeout
    while len(found) < facts.size and time.monotonic() < deadline:
        message = comm.improbe(tag=FACTS)
        if message is None:
            time.sleep(NAP)
        else:
            answer: Facts = message.recv()
            found[answer.rank] = answer
    return [found[rank] for rank in sorted(found)]


def _measure(comm: Any, everybody: list[Facts], hosts: list[str], elements: int, stage: Stage) -> Examination | None:
    from asr_hf.cluster.doctor.links import measure_links, measure_vector

    links = measure_links(comm, hosts, stage)
    vector = measure_vector(comm, elements, stage)
    stage("ending")
    if not everybody:
        return None
    return Examination([*diagnose(everybody), *judge_links(links, vector)], everybody, links, vector)
