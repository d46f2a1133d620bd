"""Learning rates: newbob, warm-up and cuts at the times of the paper, and which θ a run goes on with and keeps."""

import itertools
import math

import pytest
import torch

from asr_hf.errors import OptionError
from asr_hf.optimizers.first_order import AdamOptions, SgdOptions
from asr_hf.optimizers.nlcg import NlcgOptions
from asr_hf.optimizers.schedule import ScheduleOptions


def polynomial_decay(start: float, step: int, steps: int, end: float, power: float) -> float:
    """The schedule of the paper's examples, as its framework documents it."""
    return (start - end) * (1 - step / steps) ** power + end


def test_the_papers_200_epochs() -> None:
    options = ScheduleOptions(rate=0.8, epochs=200, schedule="milestones", warmup_from=0.125)
    for epoch in (0, 1, 12, 24):
        expected = polynomial_decay(0.1, epoch, 25, 0.8, 0.5)
        assert options.milestones_rate(epoch / 200) == pytest.approx(expected)
    for epoch, rate in ((25, 0.8), (101, 0.8), (102, 0.08), (152, 0.08), (153, 0.008), (199, 0.008)):
        assert options.milestones_rate(epoch / 200) == pytest.approx(rate)


def test_without_warmup_and_cuts_the_rate_is_constant() -> None:
    options = ScheduleOptions(rate=0.3, schedule="milestones", warmup=0.0, milestones=[])
    assert {options.milestones_rate(done / 10) for done in range(10)} == {0.3}


def test_newbob_halves_once_gains_are_small_and_stops_once_they_vanish(scripted) -> None:
    heldout = [2.0, 1.0, 0.999, 0.9, 0.8999]  # start; a good epoch; a poor one: halve from now on; good; poor: stop
    optimizer = SgdOptions(rate=0.4, momentum=0.0).start(torch.zeros(3), seed=0)
    objective, rates = scripted(heldout), []
    while not optimizer.state.finished:
        report = optimizer.step(objective)
        rates.append(report.step)
    assert rates == pytest.approx([0.4, 0.4, 0.2, 0.1])
    assert "newbob" in optimizer.state.finished
    assert optimizer.state.steps == 16


def test_an_epoch_that_hurts_is_taken_back(scripted) -> None:
    optimizer = SgdOptions(rate=0.1, momentum=0.0, epochs=2).start(torch.zeros(3), seed=0)
    objective = scripted([2.0, 1.0, math.inf])
    optimizer.step(objective)
    after_one = optimizer.state.theta.clone()
    report = optimizer.step(objective)
    assert not report.accepted
    assert torch.equal(optimizer.state.theta, after_one)
    assert torch.equal(optimizer.best()[0], after_one)


def test_the_rate_changes_step_by_step_and_no_epoch_is_taken_back(scripted) -> None:
    settings = {"rate": 1.0, "epochs": 4, "schedule": "milestones", "warmup": 0.375, "milestones": [0.5, 0.75]}
    optimizer = SgdOptions(**settings, momentum=0.0).start(torch.zeros(3), seed=0)
    objective, reports = scripted([2.0, 1.0, 5.0, 0.5, 0.7]), []
    while not optimizer.state.finished:
        optimizer.pause_after = 0.0  # paused after every step
        report = optimizer.step(objective)
        if report is not None:
            reports.append(report)
    path = [*(float(theta[0]) for theta in objective.visited), float(optimizer.state.theta[0])]
    rates = [before - after for before, after in itertools.pairwise(path)]
    warm = [polynomial_decay(0.1, step, 6, 1.0, 0.5) for step in range(6)]
    assert rates == pytest.approx([*warm, 1.0, 1.0, *[0.1] * 4, *[0.01] * 4], rel=1e-3)
    assert [report.step for report in reports] == pytest.approx([warm[3], 1.0, 0.1, 0.01])
    assert all(report.accepted for report in reports)
    assert optimizer.state.finished == "all 4 epochs are done"
    assert float(optimizer.best()[0][0]) == pytest.approx(path[12])  # after the third epoch, whose loss was the lowest
    assert optimizer.state.best_heldout == 0.5


def test_any_first_order_method_takes_either_schedule(scripted) -> None:
    for options in (SgdOptions, AdamOptions, NlcgOptions):
        for schedule in ("newbob", "milestones"):
            optimizer = options(schedule=schedule, epochs=2).start(torch.zeros(3), seed=0)
            objective = scripted([2.0, 3.0, 1.0])
            optimizer.step(objective)
            gone_back = torch.equal(optimizer.state.theta, torch.zeros(3))
            assert gone_back == (schedule == "newbob")
            optimizer.step(objective)
            assert schedule in optimizer.view() or "warm-up" in optimizer.view()
            assert optimizer.state.best_heldout == 1.0
            assert math.isfinite(float(optimizer.best()[0].sum()))


@pytest.mark.parametrize(
    ("name", "value"),
    [("schedule", "cosine"), ("warmup", 1.5), ("warmup_from", 0.0), ("warmup_power", 0.0), ("milestones", [12.0]),
     ("decay", 0.0), ("rate", 0.0), ("epochs", 0)],
)  # fmt: skip
def test_impossible_schedules_are_refused(name: str, value: object) -> None:
    with pytest.raises(OptionError, match=rf"optimizer\.{name}"):
        ScheduleOptions(**{name: value})
