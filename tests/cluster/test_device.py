"""Which device a rank takes."""

import pytest
import torch

from asr_hf.cluster.device import chosen_device, local_rank
from asr_hf.errors import OptionError


def test_local_ranks_of_launchers() -> None:
    assert local_rank({}) == 0
    assert local_rank({"OMPI_COMM_WORLD_LOCAL_RANK": "3", "SLURM_LOCALID": "0"}) == 3
    assert local_rank({"MPI_LOCALRANKID": "2"}) == 2
    assert local_rank({"SLURM_LOCALID": "1"}) == 1


def test_local_rank_r_takes_the_visible_gpu_r(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    for rank, gpu in ((0, 0), (1, 1), (2, 0)):
        monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_RANK", str(rank))
        assert chosen_device("auto") == torch.device("cuda", gpu) == taken[-1]
    assert chosen_device("cpu") == torch.device("cpu")


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert chosen_device("auto") == torch.device("cpu")
    with pytest.raises(OptionError, match=r"cluster\.device=cuda, but torch finds no GPU"):
        chosen_device("cuda")
