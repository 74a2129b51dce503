"""What pooling costs in answers, beside other ways to the same number of tokens: ``affinity-pool eval``."""
