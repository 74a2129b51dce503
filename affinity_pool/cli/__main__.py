"""For launchers that start modules: ``accelerate launch -m affinity_pool.cli eval ...``."""

from . import main

main()
