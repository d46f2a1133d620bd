"""The cost model against sums by hand and deals by brute force; rows; the command on a tiny network and two ranks."""

import json
import math
from itertools import product as every
from pathlib import Path

import numpy as np
import pytest

from asr_hf.bench.cost_model import (
    Command,
    Link,
    Machine,
    Spent,
    equal_minibatches,
    exchange_seconds,
    gradient,
    imbalance,
    predict,
    product,
    update,
)
from asr_hf.bench.extrapolation import FRAMES, SPREAD, UTTERANCES, efficiency_rows, imbalance_rows, switchboard_lengths
from asr_hf.bench.scaling import ScalingSettings, commands, frames_of, mean_machine, rows
from asr_hf.bench.time_to_loss import Reached, Subject, overtakes, run_seconds, time_to_loss
from asr_hf.bench.watched import Done, spent
from asr_hf.cli.main import run
from asr_hf.errors import InputError

RATES = {"gradient": 3e-4, "linearisation": 1e-4, "products": 4e-4, "evaluation": 1e-4}
MACHINE = Machine(parameters=1_000_000, seconds_per_frame=RATES, algebra=0.05, add=0.002)
LINK = Link(latency=1e-3, bandwidth=1e8)


def test_a_product_on_one_rank_is_its_frames() -> None:
    found = predict([product((1000,) * 3)], 1, MACHINE, None)
    assert found == Spent(pytest.approx(1.2), pytest.approx(1.2), 0.0, 0.0, 1.0)


def test_a_product_on_two_ranks_by_hand() -> None:
    found = predict([product((1000,) * 3, iterations=1)], 2, MACHINE, LINK)  # dealt 2 and 1
    assert found.compute == pytest.approx(4e-4 * 1500 + 0.05 / 2)
    assert found.idle == pytest.approx(4e-4 * 500 + 0.05 / 2)
    broadcast, summed = 0.002 + 4e6 / 1e8, 0.002 + 8e6 / 1e8 + 0.002
    assert found.communication == pytest.approx(broadcast + summed + 5e-3 + 4e-3)
    assert found.seconds == pytest.approx(0.8 + 0.05 + broadcast + summed + 9e-3)
    assert found.imbalance == pytest.approx(2000 / 1500)


def test_collectives_of_many_ranks_send_a_vector_twice_and_wait_logarithmically() -> None:
    on_1024 = exchange_seconds(MACHINE, 1024, LINK, broadcasts=1, sums=0)
    assert on_1024 == pytest.approx(2 * 10e-3 + 2 * 1023 / 1024 * 0.04 + 5 * 10e-3 + 4e-3)
    assert exchange_seconds(MACHINE, 1, LINK, 1, 1) == 0.0


def test_an_update_is_the_sum_of_its_commands() -> None:
    whole, some, heldout = (1000,) * 4, (500,) * 2, (800,)
    found = predict(update(whole, some, heldout, 3, candidates=2, trials=1), 1, MACHINE, None)
    by_hand = 1.2 + 0.1 + 3 * (0.4 + 0.05) + (1 + 2) * 0.08 + 0.4
    assert found.seconds == pytest.approx(by_hand)
    assert equal_minibatches(4100, 2000) == (2000, 2000, 100)


@pytest.mark.parametrize("ranks", [2, 3])
def test_imbalance_of_deals_is_that_of_the_best_of_all_deals_or_a_third_more(ranks: int) -> None:
    random = np.random.default_rng(ranks)
    for _ in range(20):
        frames = random.integers(1, 50, size=7).tolist()
        best = min(
            max(sum(f for f, hand in zip(frames, hands, strict=True) if hand == rank) for rank in range(ranks))
            for hands in every(range(ranks), repeat=len(frames))
        )
        found = imbalance(frames, ranks) * sum(frames) / ranks
        assert best - 1e-9 <= found <= (4 / 3 - 1 / (3 * ranks)) * best + 1e-9  # Graham (1969) on longest first


def test_imbalance_of_simulated_ranks_by_a_deal_written_anew() -> None:
    lengths = switchboard_lengths(3000)
    found = {(row["sample"], row["ranks"]): row for row in imbalance_rows(lengths, (7, 64))}
    ordered = sorted(lengths.tolist(), reverse=True)
    minibatches = []
    while ordered:
        count = max(1, 2048 // ordered[0])
        minibatches.append(sum(ordered[:count]))
        ordered = ordered[count:]
    for ranks in (7, 64):
        loads = np.zeros(ranks)
        for frames in sorted(minibatches, reverse=True):
            loads[loads.argmin()] += frames
        row = found["gradient, whole utterances", ranks]
        assert row["minibatches"] == len(minibatches)
        assert row["imbalance"] == pytest.approx(loads.max() / loads.mean())


def test_lengths_have_the_mean_and_the_short_utterances_of_switchboard() -> None:
    lengths = np.sort(switchboard_lengths())
    assert len(lengths) == UTTERANCES
    assert lengths.sum() == pytest.approx(FRAMES, rel=1e-3)
    assert lengths[:100_000].mean() == pytest.approx(168, rel=0.01)  # 10,000 of the shortest 100,000: 4 h 40 min
    assert np.log(lengths).std() == pytest.approx(SPREAD, rel=0.01)


def test_efficiency_is_speed_per_rank() -> None:
    (one, many) = efficiency_rows(MACHINE, {"slow": LINK}, (1, 4096))[:2]
    assert one["efficiency"] == pytest.approx(1.0)
    assert many["efficiency"] == pytest.approx(one["seconds"] / (4096 * many["seconds"]))
    assert many["efficiency"] < 1


def test_seconds_of_ranks_are_all_accounted_for() -> None:
    done = [Done("gradient", 30, 4.0, (3.0, 2.0)), Done("products", 30, 2.5, (1.0, 2.0))]
    found = spent(8.0, done, 2)  # 1.5 s on the master alone
    assert found.compute == pytest.approx(2.5 + 1.5 + 0.75)
    assert found.idle == pytest.approx(0.5 + 0.5 + 0.75)
    assert found.communication == pytest.approx(1.0 + 0.5)
    assert found.compute + found.idle + found.communication == pytest.approx(found.seconds)
    assert found.imbalance == pytest.approx(5.0 / 4.0)


def at(seconds: float) -> Spent:
    return Spent(seconds, 0.8 * seconds, 0.1 * seconds, 0.1 * seconds, 1.25)


def test_rows_are_of_the_repeat_in_the_middle_and_speedups_of_frames_a_second() -> None:
    settings = ScalingSettings(ranks=(1, 2), minibatches=4, model="tiny", iterations=2)
    strong = ("gradient", "product", "product, 1 minibatch", "update")
    repeats = {(1, what): [at(8.0), at(4.0), at(100.0)] for what in strong}
    repeats |= {(2, what): [at(5.0)] for what in strong}
    repeats |= {(2, f"{what}, weak"): [at(10.0)] for what in ("gradient", "product", "update")}
    predictions = dict.fromkeys(((ranks, what) for _, what in repeats for ranks in (1, 2)), at(7.0))
    found = {(row["ranks"], row["what"]): row for row in rows(settings, repeats, predictions)}
    assert len(found) == 2 * 7
    one, two = found[1, "product"], found[2, "product"]
    assert (one["seconds"], one["speedup"], one["fastest"], one["slowest"]) == (8.0, 1.0, 4.0, 100.0)
    assert (two["seconds"], two["speedup"], two["frames"], two["predicted"]) == (5.0, 1.6, 64, 7.0)
    assert two["compute"] == pytest.approx(4.0)
    weak = found[2, "product, weak"]
    assert (weak["frames"], weak["speedup"]) == (128, pytest.approx(2 * 8 / 10))
    assert found[1, "product, weak"]["seconds"] == 8.0
    assert frames_of(settings.setup, 2, "product, 1 minibatch") == 16


def test_constants_of_processes_are_averaged() -> None:
    one = {"parameters": 5, "seconds_per_frame": {"gradient": 1.0}, "algebra": 2.0, "add": 0.0}
    other = {**one, "seconds_per_frame": {"gradient": 3.0}, "algebra": 4.0}
    assert mean_machine([one, other]) == Machine(5, {"gradient": 2.0}, 3.0, 0.0)


@pytest.mark.parametrize("ranks", [(2, 1), (0, 1), (1, 1)])
def test_ranks_are_ascending(ranks: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="--ranks"):
        ScalingSettings(ranks=ranks)


def test_time_of_a_run_on_ranks_by_hand() -> None:
    subject, machine = Subject(parameters=1_000_000, frames=10_000), MACHINE
    steps = Reached(seconds=20.0, cost=2.0, timed=0.0, vectors=200.0)  # 100 exchanges, each after 200 frames
    assert run_seconds(steps, 1, subject, machine, LINK) == pytest.approx(20.0)
    exchange = 2 * (0.002 + 0.002) / 2 + 0.04 + 0.08 + 0.002 + 5e-3
    assert run_seconds(steps, 2, subject, machine, LINK) == pytest.approx(5.0 + 15.0 / 2 + 100 * exchange)
    many = run_seconds(steps, 4096, subject, machine, Link(0.0, math.inf))
    assert many == pytest.approx(5.0 + 15.0 / (200 / 32) + 100 * 0.002)  # no rank gets fewer than 32 frames


def comparison() -> dict:
    def system(cg: int | None, *rows: tuple[float, float, float]) -> dict:
        names = ("seconds", "cost", "vectors", "heldout")
        made = [dict(zip(names, (s, s, v, h), strict=True)) | {"timed": 0.0, "cg_iterations": cg} for s, v, h in rows]
        return {"runs": {"0": {"failed": None, "rows": made}}}

    systems = {
        "hf": system(5, (20.0, 20.0, 2.5), (40.0, 40.0, 2.0)),
        "sgd": system(None, (10.0, 10_000.0, 1.9)),
        "ng": system(5, (40.0, 40.0, 3.0)),
    }
    return {"settings": {"reference": "hf"}, "systems": systems}


def test_the_second_order_method_overtakes_where_its_time_falls_below() -> None:
    found = time_to_loss(comparison(), Subject(1_000_000, 100_000), MACHINE)
    assert found["loss"] == 2.0
    for fabric, systems in found["systems"].items():
        assert systems["ng"] is None
        assert systems["hf"][0] == pytest.approx(40.0)
        assert systems["sgd"][0] == pytest.approx(10.0)
        where = [r for r, hf, sgd in zip(found["ranks"], systems["hf"], systems["sgd"], strict=True) if hf < sgd]
        by_name = {row["system"]: row["ranks"] for row in found["overtakes"] if row["fabric"] == fabric}
        assert by_name == {"hf": where[0], "ng": None}
    assert time_to_loss(comparison(), Subject(1_000_000, 100_000), MACHINE, loss=1.95)["systems"][fabric]["hf"] is None


def test_overtaking_is_for_good() -> None:
    rival = [2.0] * 13
    assert overtakes([1.0, 3.0, *[1.0] * 11], rival) == 4
    assert overtakes([3.0] * 13, rival) is None
    assert overtakes([3.0] * 13, None) == 1
    assert overtakes(None, rival) is None


def test_commands_of_rows() -> None:
    setup = ScalingSettings(minibatches=8, iterations=3).setup
    assert commands(setup, 2, "gradient") == [gradient((2048,) * 8)]
    assert commands(setup, 2, "product, 1 minibatch") == [product((2048,))]
    kinds = [(command.kind, len(command.frames)) for command in commands(setup, 2, "update, weak")]
    assert kinds == [
        ("evaluation", 4),
        ("gradient", 16),
        ("linearisation", 16),
        *[("products", 16)] * 3,
        ("evaluation", 4),
    ]


def test_an_update_gives_the_commands_that_the_model_takes_it_for() -> None:
    from asr_hf.bench.scaling_ranks import Bench

    setup = ScalingSettings(model="tiny", minibatches=8, iterations=3).setup
    bench = Bench(setup)
    before = bench.objective.account.vectors
    assert before > 0
    found = bench.update()
    asked: list[Command] = commands(setup, 1, "update")
    assert [(done.kind, done.frames) for done in bench.objective.done] == [(c.kind, sum(c.frames)) for c in asked]
    assert bench.objective.account.vectors == sum(command.broadcasts + command.sums for command in asked)
    assert found.communication < 0.2 * found.seconds
    assert found.idle == 0.0


@pytest.mark.mpi
def test_the_command_measures_draws_and_joins(tmp_path: Path, capsys) -> None:
    out, joined, picture = tmp_path / "scaling.json", tmp_path / "joined.json", tmp_path / "time.svg"
    few = ["--model", "tiny", "--minibatches", "4", "--iterations", "2", "--repeats", "1", "--together", "1"]
    run(["bench", "scaling", "--out", str(out), "--ranks", "1,2", *few])
    said = capsys.readouterr().out
    assert said.index("predicted: product, ranks: 2") < said.index("round 1 of 1")
    measured = json.loads(out.read_text())
    assert {(row["ranks"], row["what"]) for row in measured["rows"]} >= set(
        every((1, 2), ("gradient", "product", "update"))
    )
    for row in measured["rows"]:
        assert row["seconds"] == pytest.approx(row["compute"] + row["communication"] + row["idle"])
        assert row["imbalance"] >= 1
        assert row["predicted"] > 0
    one = next(row for row in measured["rows"] if row["ranks"] == 2 and row["what"] == "product, 1 minibatch")
    assert one["imbalance"] > 1.3  # a rank without frames; only what it takes to say so was computing
    compared = tmp_path / "compare.json"
    compared.write_text(json.dumps(comparison()))
    words = ["--measured", str(out), "--compare", str(compared), "--subject", "1000,100000", "--svg", str(picture)]
    run(["bench", "scaling", "--out", str(joined), *words])
    assert "faster than sgd are" in capsys.readouterr().out
    assert picture.read_text().startswith("<svg")
    page = tmp_path / "page.md"
    page.write_text("<!-- bench scaling:begin -->\n<!-- bench scaling:end -->\n")
    run(["bench", "table", str(joined), "--markdown", str(page)])
    assert "EXTRAPOLATION: seconds to" in page.read_text()
    capsys.readouterr()
    run(["bench", "table", str(out), str(joined)])
    drawn = capsys.readouterr().out
    assert [drawn.count(text) for text in ("== scaling", "== joined", "constants", "EXTRAPOLATION")] == [1, 1, 2, 1]


def test_a_launch_that_fails_says_what_it_said(tmp_path: Path) -> None:
    words = ["--ranks", "2", "--launch", "sh -c 'echo no such host; exit 3' {ranks}"]
    with pytest.raises(InputError, match="no such host"):
        run(["bench", "scaling", "--out", str(tmp_path / "out.json"), "--model", "tiny", *words])
    with pytest.raises(InputError, match=r"\{ranks\}"):
        run(["bench", "scaling", "--out", str(tmp_path / "out.json"), "--launch", "mpiexec -n 2"])
    with pytest.raises(InputError, match="go together"):
        run(["bench", "scaling", "--out", str(tmp_path / "out.json"), "--compare", "x.json"])
    with pytest.raises(InputError, match=r"none\.json"):
        run(["bench", "scaling", "--out", str(tmp_path / "out.json"), "--measured", str(tmp_path / "none.json")])
