"""asr_hf: second-order training of hybrid-HMM speech acoustic models over MPI ranks."""

__version__ = "0.1.0"
