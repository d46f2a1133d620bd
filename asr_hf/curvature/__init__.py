"""Curvature products JᵀMJ·v: J of the model, M of the criterion."""
