"""Recorded speech with and without pooling, side by side."""
