"""Oracle interventions: how few tokens a word can do with, at each layer."""
