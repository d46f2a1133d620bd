from pathlib import Path

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch

from asr_hf.errors import InputError, OptionError
from asr_hf.hmm.gmm import Gmm, GmmOptions, growth_stages, single_gaussians


def random_gmm(pdfs: int = 3, gaussians: int = 4, dim: int = 5) -> Gmm:
    generator = torch.Generator().manual_seed(5)
    weights = torch.rand(pdfs, gaussians, generator=generator, dtype=torch.float64)
    weights[0, -1] = 0.0  # an absent Gaussian
    weights /= weights.sum(1, keepdim=True)
    means = torch.randn(pdfs, gaussians, dim, generator=generator, dtype=torch.float64)
    variances = 0.3 + torch.rand(pdfs, gaussians, dim, generator=generator, dtype=torch.float64)
    return Gmm(weights.log(), means, variances)


def oracle(gmm: Gmm, x: np.ndarray) -> np.ndarray:
    """(T, P) by scipy, one Gaussian at a time."""
    columns = []
    for pdf in range(gmm.num_pdfs):
        scores = [
            float(gmm.log_weights_PK[pdf, k])
            + scipy.stats.norm.logpdf(x, gmm.means_PKD[pdf, k], gmm.variances_PKD[pdf, k].sqrt()).sum(1)
            for k in range(gmm.max_gaussians)
        ]
        columns.append(scipy.special.logsumexp(np.stack(scores), axis=0))
    return np.stack(columns, axis=1)


def test_log_likelihoods_equal_scipy() -> None:
    gmm = random_gmm()
    x = np.random.default_rng(0).normal(size=(50, 5)).astype(np.float32)
    found = gmm.log_likelihoods(x)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, oracle(gmm, x), atol=1e-4, rtol=1e-5)
    chosen = np.array([2, 0])
    np.testing.assert_allclose(gmm.log_likelihoods(x, chosen), found[:, chosen], atol=1e-4)


def test_statistics_equal_posteriors_by_hand() -> None:
    gmm = random_gmm()
    random = np.random.default_rng(1)
    x, pdfs = random.normal(size=(40, 5)), random.integers(0, 3, size=40)
    stats = gmm.accumulate(torch.from_numpy(x), torch.from_numpy(pdfs))
    occupancy, first, second = np.zeros((3, 4)), np.zeros((3, 4, 5)), np.zeros((3, 4, 5))
    total = 0.0
    for frame, pdf in zip(x, pdfs, strict=True):
        deviation = gmm.variances_PKD[pdf].sqrt().numpy()
        densities = scipy.stats.norm.pdf(frame, gmm.means_PKD[pdf].numpy(), deviation).prod(1)
        joint = gmm.log_weights_PK[pdf].exp().numpy() * densities
        total += np.log(joint.sum())
        occupancy[pdf] += joint / joint.sum()
        first[pdf] += (joint / joint.sum())[:, None] * frame
        second[pdf] += (joint / joint.sum())[:, None] * frame**2
    np.testing.assert_allclose(stats.occupancy_PK, occupancy, atol=1e-10)
    np.testing.assert_allclose(stats.first_PKD, first, atol=1e-10)
    np.testing.assert_allclose(stats.second_PKD, second, atol=1e-10)
    assert stats.log_likelihood == pytest.approx(total)
    assert stats.frames == 40


def test_likelihood_never_falls_with_alignment_gaussians_and_floors_fixed() -> None:
    random = np.random.default_rng(2)
    pdfs = torch.from_numpy(random.integers(0, 4, size=3000))
    centres = random.normal(scale=2.0, size=(4, 6, 5))
    x = torch.from_numpy(centres[pdfs, random.integers(0, 6, size=3000)] + random.normal(size=(3000, 5)))
    floor = torch.full((5,), 0.9, dtype=torch.float64)  # some variances reach it
    count = torch.bincount(pdfs, minlength=4).double()
    sums = [torch.zeros(4, 5, dtype=torch.float64).index_add_(0, pdfs, x**power) for power in (1, 2)]
    gmm = single_gaussians(count, *sums, floor)
    gmm = gmm.grown(6, count[:, None], GmmOptions(min_occupancy=1e-3))
    levels, floored = [], 0
    for _ in range(30):
        stats = gmm.accumulate(x, pdfs)
        levels.append(stats.log_likelihood)
        gmm = gmm.updated(stats, floor, min_occupancy=1e-12)
        floored += int((gmm.variances_PKD == floor).sum())
        assert gmm.num_gaussians == 24
    assert floored > 0
    assert np.diff(levels).min() > -1e-7
    assert levels[-1] > levels[0] + 100


def test_update_drops_starved_gaussians_and_keeps_pdfs_without_frames() -> None:
    gmm = random_gmm()
    x = torch.from_numpy(np.random.default_rng(3).normal(size=(30, 5)))
    stats = gmm.accumulate(x, torch.full((30,), 1))
    updated = gmm.updated(stats, torch.full((5,), 1e-3, dtype=torch.float64), min_occupancy=25.0)
    assert torch.isfinite(updated.log_weights_PK).sum(1).tolist() == [3, 1, 4]
    torch.testing.assert_close(updated.means_PKD[2], gmm.means_PKD[2])
    torch.testing.assert_close(updated.log_weights_PK[1].exp().sum(), torch.tensor(1.0, dtype=torch.float64))


def test_growth_keeps_mean_and_weight_and_respects_occupancy() -> None:
    one = single_gaussians(
        torch.tensor([100.0, 15.0], dtype=torch.float64), torch.tensor([[50.0], [30.0]]).double(),
        torch.tensor([[125.0], [90.0]]).double(), torch.tensor([0.01]).double(),
    )  # fmt: skip
    assert one.means_PKD.flatten().tolist() == [0.5, 2.0]
    assert one.variances_PKD.flatten().tolist() == [1.0, 2.0]
    grown = one.grown(4, torch.tensor([[100.0], [15.0]]), GmmOptions(min_occupancy=10.0))
    assert torch.isfinite(grown.log_weights_PK).sum(1).tolist() == [4, 1]  # 15 frames are too few to split
    weights = grown.log_weights_PK[0].exp()
    assert float(weights.sum()) == pytest.approx(1.0)
    assert float((weights * grown.means_PKD[0, :, 0]).sum()) == pytest.approx(0.5)
    assert len(set(grown.means_PKD[0, :, 0].tolist())) >= 3


def test_growth_stages_double() -> None:
    assert list(growth_stages(1)) == [1]
    assert list(growth_stages(8)) == [1, 2, 4, 8]
    assert list(growth_stages(6)) == [1, 2, 4, 6]


def test_saved_and_loaded_is_the_same(tmp_path: Path) -> None:
    gmm = random_gmm()
    gmm.save(tmp_path)
    loaded = Gmm.load(tmp_path)
    assert torch.equal(loaded.means_PKD, gmm.means_PKD)
    assert torch.equal(loaded.variances_PKD, gmm.variances_PKD)
    assert torch.equal(loaded.log_weights_PK, gmm.log_weights_PK)


def test_bad_models_features_and_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="missing"):
        Gmm.load(tmp_path)
    (tmp_path / "gmm.safetensors").write_bytes(b"cut short")
    with pytest.raises(InputError, match="damaged"):
        Gmm.load(tmp_path)
    with pytest.raises(InputError, match="5 feature dimensions, the features 4"):
        random_gmm().log_likelihoods(np.zeros((2, 4), np.float32))
    with pytest.raises(OptionError, match=r"gmm\.gaussians"):
        GmmOptions(gaussians=0)
    with pytest.raises(OptionError, match=r"gmm\.states"):
        GmmOptions(states=1)
