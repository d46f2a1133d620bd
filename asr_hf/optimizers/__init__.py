"""Optimisers: an Objective and their own state → the next θ and a report."""
