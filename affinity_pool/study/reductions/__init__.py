"""What may stand in for Affinity Pooling at a site: the paper's oracle operators and the baselines it has to beat."""
