"""A fair comparison of optimisers: same data, same initial parameters, as many tuning trials for each, cost counted.

Every trial and every final run is a training run of its own: OUT/<system>/trial-<k> and OUT/<system>/seed-<s>.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from asr_hf.bench.compare_runs import Ended, Runner, Task
from asr_hf.bench.compare_words import Decoding, word_errors
from asr_hf.bench.curvature import library_versions, machine_facts
from asr_hf.data.fingerprint import read_fingerprint, require_same
from asr_hf.decoding.graph import read_graph
from asr_hf.errors import InputError
from asr_hf.hmm.model import HmmModel
from asr_hf.hmm.workers import Workers
from asr_hf.options import require
from asr_hf.training.labels import require_one_model
from asr_hf.training.run import Options

Say = Callable[[str], None]
SAME = ("corpus", "model", "criterion", "training")  # groups of options that all systems share


@dataclass(frozen=True)
class Trial:
    """A choice of a system's options: the overrides that make it, and all options of its runs."""

    overrides: tuple[str, ...]
    options: Options


@dataclass(frozen=True)
class System:
    """An optimiser with its options.

    Attributes:
        overrides: what it sets before any trial, as it is to be written into the file.
        trials: of which the best on dev is chosen; if it was chosen elsewhere, that one alone.
        chosen: with how many trials it was chosen elsewhere; None: it is to be chosen here.
    """

    overrides: tuple[str, ...]
    trials: tuple[Trial, ...]
    chosen: int | None = None


@dataclass(frozen=True)
class Settings:
    """How systems are compared.

    Attributes:
        seeds: of initial weights, samples and orders; trials have the first.
        budget, trial_budget: gradient-equivalents after which a final run, a trial ends (0: no limit).
        jobs: processes.
        dev: FEATS and ALI or CHAIN whose loss chooses among trials; None: the held-out loss does.
        decoding: of the final models; None: no word error rates.
        wer_seeds: whose models are decoded.
        reference: the system that others are held against.
        tuned: file that the winners come from, as it is to be written into the file; None: trials are run.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    budget: float = 0.0
    trial_budget: float = 0.0
    jobs: int = 1
    dev: tuple[str, str] | None = None
    decoding: Decoding | None = None
    wer_seeds: tuple[int, ...] = ()
    reference: str = ""
    tuned: str | None = None

    def __post_init__(self) -> None:
        require(bool(self.seeds), "--seeds", "", "must name a seed")
        for name, seeds in (("--seeds", self.seeds), ("--wer-seeds", self.wer_seeds)):
            require(len(set(seeds)) == len(seeds), name, seeds, "must not name a seed twice")
            require(all(seed >= 0 for seed in seeds), name, seeds, "must not be negative")
        require(set(self.wer_seeds) <= set(self.seeds), "--wer-seeds", self.wer_seeds, "must be of --seeds")
        require(self.budget >= 0, "--budget", self.budget, "must not be negative")
        require(self.trial_budget >= 0, "--trial-budget", self.trial_budget, "must not be negative")
        require(self.jobs >= 1, "--jobs", self.jobs, "must be at least 1")


def bench_compare(
    out: Path,
    systems: Mapping[str, System],
    settings: Settings,
    command: str,
    to_yaml: Callable[[Options], str],
    say: Say = print,
) -> dict[str, Any]:
    """Run every trial, choose each system's winner, run it with every seed, and return what compare.json holds.

    Args:
        out: folder of all runs. Runs that are finished there are kept, unfinished ones go on.
        systems: by name.
        settings: how they are compared.
        command: the command line, as it is to be written into the file.
        to_yaml: a run's options as the text of its config.yaml.
        say: told what is being done.

    Returns:
        command, versions, machine, settings, and `systems`. A system has `options`; `trials`, each with overrides, dev,
        heldout, cost, updates and failed; `winner`, its overrides and the number of trials behind it (null: all trials
        failed); and `runs` by seed, each with failed, dev, `rows` (see compare_runs.curve) and, if it was decoded,
        `wer` (see compare_words.word_errors). A run that diverges is a result and never chosen.

    Raises:
        InputError: systems that differ in corpus, model, criterion or training; a dev set or graph that does not fit
            their models; a run folder that belongs to other options, or cannot be written; a job that was killed.
    """
    _require_same_task(systems)
    _require_fitting_sets(next(iter(systems.values())).trials[0].options, settings)
    prepare = Preparation(out, settings, to_yaml)
    with Workers(settings.jobs, Runner) as workers:
        tuning = {name: prepare.trials(name, system) for name, system in systems.items() if system.chosen is None}
        tried = _run_all(workers, tuning, say, "trials")
        winners = {name: _choose(system, tried.get(name)) for name, system in systems.items()}
        final = {name: prepare.finals(name, winner) for name, winner in winners.items() if winner is not None}
        done = _run_all(workers, final, say, "final runs")
    described = {}
    for name, system in systems.items():
        trials = [_described_trial(*each) for each in zip(system.trials, tried.get(name, ()), strict=False)]
        runs = zip(settings.seeds, final.get(name, ()), done.get(name, ()), strict=False)
        described[name] = {
            "options": list(system.overrides),
            "trials": trials,
            "winner": _described_winner(winners[name], len(trials) if system.chosen is None else system.chosen),
            "runs": {str(seed): _described_run(seed, task, ended, settings, say) for seed, task, ended in runs},
        }
    return {
        "command": command,
        "versions": library_versions(),
        "machine": machine_facts("cpu"),
        "settings": _described_settings(settings),
        "systems": described,
    }


def _require_same_task(systems: Mapping[str, System]) -> None:
    """What all systems are compared on is the same in every trial (InputError)."""
    first = next(iter(systems.values())).trials[0].options
    for name, system in systems.items():
        for trial, group in product(system.trials, SAME):
            if trial.options[group] != first[group]:
                raise InputError(
                    f"system '{name}' has options of {group} that others do not have",
                    f"Set {group} on the command line, for all systems alike.",
                )


def _require_fitting_sets(options: Options, settings: Settings) -> None:
    """Dev, the sets to decode and the graph fit the models to come (InputError), before hours of training."""
    corpus, decoding = options["corpus"], settings.decoding
    sets = [settings.dev[0]] if settings.dev else []
    sets += [decoding.dev, decoding.test] if decoding else []
    for feats in sets:
        require_same(read_fingerprint(corpus.train), read_fingerprint(feats), corpus.train, feats)
    alignments = Path(corpus.alignments)
    if settings.dev:
        require_one_model(alignments, Path(settings.dev[1]), options["criterion"].sequence)
    if decoding:
        count, num_pdfs = read_graph(decoding.graph).num_pdfs, HmmModel.load(alignments).num_pdfs
        if count != num_pdfs:
            raise InputError(
                f"{decoding.graph} has {count} pdfs and {alignments} {num_pdfs}", "Make both with one tree."
            )


@dataclass(frozen=True)
class Preparation:
    """Makes the tasks of a comparison."""

    out: Path
    settings: Settings
    to_yaml: Callable[[Options], str]

    def trials(self, name: str, system: System) -> list[Task]:
        seed, budget = self.settings.seeds[0], self.settings.trial_budget
        return [self._task(name, f"trial-{k}", trial, seed, budget) for k, trial in enumerate(system.trials)]

    def finals(self, name: str, winner: Trial) -> list[Task]:
        return [self._task(name, f"seed-{seed}", winner, seed, self.settings.budget) for seed in self.settings.seeds]

    def _task(self, name: str, what: str, trial: Trial, seed: int, budget: float) -> Task:
        options = {**trial.options, "training": replace(trial.options["training"], seed=seed, budget=budget)}
        title = f"{name} {what} {' '.join(trial.overrides)}".rstrip()
        return Task(self.out / name / what, title, options, self.to_yaml(options), self.settings.dev)


def _run_all(workers: Workers, tasks: Mapping[str, Sequence[Task]], say: Say, what: str) -> dict[str, list[Ended]]:
    """The tasks of all systems, in one queue."""
    queue = [task for each in tasks.values() for task in each]
    if queue:
        say(f"{len(queue)} {what} of {len(tasks)} systems")
    ended = iter(workers.map("run", queue))
    return {name: [next(ended) for _ in each] for name, each in tasks.items()}


def _choose(system: System, tried: Sequence[Ended] | None) -> Trial | None:
    """The trial with the lowest loss on dev, or else on held-out, of those that did not fail; None: all did."""
    if tried is None:
        return system.trials[0]
    finished = [(ended, trial) for ended, trial in zip(tried, system.trials, strict=True) if ended.failed is None]
    return min(finished, key=lambda each: each[0].loss)[1] if finished else None


def _described_trial(trial: Trial, ended: Ended) -> dict[str, Any]:
    return {
        "overrides": list(trial.overrides),
        "dev": ended.dev,
        "heldout": ended.heldout,
        "cost": ended.spent("cost"),
        "updates": ended.spent("update"),
        "failed": ended.failed,
    }


def _described_winner(winner: Trial | None, trials: int) -> dict[str, Any] | None:
    return None if winner is None else {"overrides": list(winner.overrides), "trials": trials}


def _described_run(seed: int, task: Task, ended: Ended, settings: Settings, say: Say) -> dict[str, Any]:
    """A final run, decoded where that is asked for."""
    described: dict[str, Any] = {"failed": ended.failed, "dev": ended.dev, "rows": ended.rows}
    if settings.decoding is not None and seed in settings.wer_seeds and not ended.failed:
        described["wer"] = word_errors(task.folder, settings.decoding, settings.jobs)
        counts = ", ".join(f"{described['wer'][name]['errors']} on {name}" for name in ("dev", "test"))
        say(f"{task.title}: word errors {counts}")
    return described


def _described_settings(settings: Settings) -> dict[str, Any]:
    """Without the places of folders."""
    named = ("seeds", "budget", "trial_budget", "jobs", "reference", "tuned", "wer_seeds")
    described = {name: getattr(settings, name) for name in named}
    described["chosen_on"] = "held-out" if settings.dev is None else "dev"
    described["decoding"] = None if settings.decoding is None else asdict(settings.decoding.options)
    return described
