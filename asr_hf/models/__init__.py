"""Acoustic models: plain torch modules, (B, W, D) → named outputs (B, T, ·)."""
