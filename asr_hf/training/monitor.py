"""One row per update: to the terminal, to log.jsonl and to TensorBoard."""

import dataclasses
import json
import math
import warnings
from pathlib import Path
from typing import Any

from asr_hf.optimizers.optimizer import StepReport

HEADER = (
    f"{'update':>6} {'loss':>8} {'held-out':>8} {'|g|':>8} {'λ':>8} {'ρ':>6} {'CG':>3} {'stop':<10} {'step':>7} "
    f"{'GE':>6} {'grad':>6} {'lin':>5} {'prod':>6} {'eval':>6} {'comm':>5} {'master':>6} {'ms/it':>6} "
    f"{'total':>7}  note"
)

SCALARS = (  # of a row, for TensorBoard
    "loss", "heldout", "gradient_norm", "damping", "rho", "cg_iterations", "step", "gradient_equivalents",
    "master_per_iteration",
)  # fmt: skip


class Monitor:
    """Writes the rows of a run.

    Args:
        run_dir: the RUN folder.
        done: updates that a resumed run has already; later rows of an earlier session are cut off the log.
    """

    def __init__(self, run_dir: Path, done: int) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=DeprecationWarning)  # of tensorboard's own imports
            from torch.utils.tensorboard import SummaryWriter

            self._tensorboard = SummaryWriter(str(run_dir / "tensorboard"), purge_step=done + 1)
        self._path = run_dir / "log.jsonl"
        rows = read_log(self._path)
        self._path.write_text("".join(json.dumps(row) + "\n" for row in rows if row["update"] <= done))
        print(HEADER, flush=True)

    def row(self, report: StepReport) -> None:
        """Show and write one update."""
        print(terminal_row(report), flush=True)
        row = {name: _plain(value) for name, value in dataclasses.asdict(report).items()}
        with open(self._path, "a") as log:
            log.write(json.dumps(row) + "\n")
        for name in SCALARS:
            if row[name] is not None:
                self._tensorboard.add_scalar(name, row[name], report.update)
        for phase, seconds in report.seconds.items():
            self._tensorboard.add_scalar(f"seconds/{phase}", seconds, report.update)
        for phase, equivalents in report.equivalents.items():
            self._tensorboard.add_scalar(f"equivalents/{phase}", equivalents, report.update)
        self._tensorboard.flush()

    def close(self) -> None:
        self._tensorboard.close()


def read_log(path: Path) -> list[dict[str, Any]]:
    """The rows of a log.jsonl; a last line that was cut short by a crash is dropped."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def terminal_row(report: StepReport) -> str:
    """One line for people, under HEADER."""

    def number(value: float | None, width: int, digits: int) -> str:
        return f"{'-':>{width}}" if value is None else f"{value:>{width}.{digits}g}"

    seconds, note = report.seconds, report.note
    per_iteration = None if report.master_per_iteration is None else 1000 * report.master_per_iteration
    if report.recomputed:
        note += f"; {report.recomputed} minibatches exceed curvature.budget_gib: linearised anew at every product"
    return (
        f"{report.update:>6} {report.loss:>8.4f} {report.heldout:>8.4f} {report.gradient_norm:>8.2g} "
        f"{number(report.damping, 8, 3)} {number(report.rho, 6, 2)} {number(report.cg_iterations, 3, 3)} "
        f"{(report.cg_stop or '-'):<10.10} {report.step:>7.3g} "
        f"{report.gradient_equivalents:>6.2f} {seconds['gradient']:>6.1f} {seconds['linearisation']:>5.1f} "
        f"{seconds['products']:>6.1f} {seconds['evaluation']:>6.1f} {seconds['communication']:>5.1f} "
        f"{seconds['master']:>6.1f} {number(per_iteration, 6, 3)} {seconds['total']:>7.1f}  {note}"
    )


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity: null stands for both."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
