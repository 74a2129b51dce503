"""Affinity Pooling at one layer at a time."""
