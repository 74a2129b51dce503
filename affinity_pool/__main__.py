"""``python -m affinity_pool``, which is ``affinity-pool``."""

from .cli.commands import main

if __name__ == "__main__":
    main()
