"""Measurements on this machine: curvature products beside gradients and other libraries."""
