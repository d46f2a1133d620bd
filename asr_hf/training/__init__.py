"""A training run: its corpus, the loop over updates, checkpoints, the log."""
