"""Training criteria: value, gradient and positive semi-definite M on the outputs of a model."""
