"""Sampling: one compiled program that writes, paints, looks and paints again, for a batch of trajectories."""
