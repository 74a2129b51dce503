"""For launchers that start modules: ``torchrun --nproc-per-node 4 -m affinity_pool.cli eval ...``."""

from .commands import main

main()
