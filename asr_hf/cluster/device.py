"""The device of a rank: a GPU for each local rank, or the CPU."""

import os
from collections.abc import Mapping

import torch

from asr_hf.errors import OptionError

LOCAL_RANK = ("OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "PALS_LOCAL_RANKID", "SLURM_LOCALID")


def local_rank(environment: Mapping[str, str] = os.environ) -> int:
    """Which of the ranks on its host a process is, as the launcher tells (0 without one)."""
    return next((int(environment[name]) for name in LOCAL_RANK if environment.get(name, "").isdigit()), 0)


def chosen_device(wanted: str) -> torch.device:
    """The device for `cluster.device`: local rank r takes the visible GPU r, counted round.

    Raises:
        OptionError: a GPU is wanted and torch finds none.
    """
    count = torch.cuda.device_count() if wanted != "cpu" else 0
    if count == 0:
        if wanted == "cuda":
            raise OptionError(
                "option cluster.device=cuda, but torch finds no GPU here",
                "Look at the driver and CUDA_VISIBLE_DEVICES (asr-hf doctor), or set cluster.device=cpu.",
            )
        return torch.device("cpu")
    device = torch.device("cuda", local_rank() % count)
    torch.cuda.set_device(device)
    return device
