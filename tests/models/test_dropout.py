"""Dropout factors: their values and mean, and that they depend on seed, update, utterance and place alone."""

import numpy as np
import pytest
import torch

from asr_hf.models.dropout import keep_factors

PLACES = {"layer1": (40, 0.25), "layer2": (30, 0.5)}


def factors(*utterances: int, seed: int = 3, update: int = 2) -> dict[str, torch.Tensor]:
    return keep_factors(PLACES, seed, update, torch.tensor(utterances))


def test_factors_are_zero_or_the_inverse_of_what_is_kept() -> None:
    found = factors(5, 1, 5)
    assert {place: tuple(factor.shape) for place, factor in found.items()} == {
        "layer1": (3, 1, 40),
        "layer2": (3, 1, 30),
    }
    for place, (_, rate) in PLACES.items():
        assert found[place].dtype == torch.float32
        assert set(found[place].flatten().tolist()) == {0.0, float(np.float32(1 / (1 - rate)))}
    assert keep_factors({}, 0, 1, torch.tensor([1])) == {}
    assert torch.equal(keep_factors({"input": (6, 0.0)}, 0, 1, torch.tensor([1]))["input"], torch.ones(1, 1, 6))


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_the_mean_factor_is_one_over_units_utterances_and_updates(rate: float) -> None:
    deviation = np.sqrt(rate / (1 - rate))  # of one factor: its variance is 1/(1 − rate) − 1
    units = keep_factors({"layer1": (100_000, rate)}, 0, 1, torch.tensor([0]))["layer1"]
    utterances = keep_factors({"layer1": (1, rate)}, 0, 1, torch.arange(2000))["layer1"]
    updates = torch.stack([keep_factors({"layer1": (1, rate)}, 0, u, torch.tensor([7]))["layer1"] for u in range(2000)])
    for sample in (units, utterances, updates):
        assert float(sample.mean()) == pytest.approx(1.0, abs=4 * deviation / np.sqrt(sample.numel()))


def test_rows_of_an_utterance_share_a_mask_whatever_the_batch() -> None:
    batch = factors(4, 0, 4, 9)
    for place in PLACES:
        assert torch.equal(batch[place][0], batch[place][2])
        for row, utterance in enumerate((4, 0, 4, 9)):
            assert torch.equal(batch[place][row], factors(utterance)[place][0])
        assert torch.equal(factors(9, 4, 0)[place], batch[place][[3, 0, 1]])
        alone = keep_factors({place: PLACES[place]}, 3, 2, torch.tensor([4]))
        assert torch.equal(alone[place][0], batch[place][0])  # other places play no part


def test_other_seeds_updates_utterances_and_places_have_other_masks() -> None:
    units = 200
    drawn = {
        (seed, update, utterance, place): tuple(factor[0, 0].tolist())
        for seed in (0, 1)
        for update in (1, 2)
        for utterance in (0, 1, 2)
        for place, factor in keep_factors(
            dict.fromkeys(("layer1", "layer2"), (units, 0.5)), seed, update, torch.tensor([utterance])
        ).items()
    }
    assert len(set(drawn.values())) == len(drawn)
    masks = np.array(list(drawn.values())) - 1.0  # ±1, of mean 0
    correlation = masks @ masks.T / units - np.eye(len(masks))
    assert np.abs(correlation).max() < 5 / np.sqrt(units)


def test_the_global_generators_are_left_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    factors(1, 2)
    assert torch.equal(before, torch.get_rng_state())
