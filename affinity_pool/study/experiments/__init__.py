"""The experiments. Each has a room with its ``run``, the ``page`` that shows it, and its ``command``.

``session`` is what their commands have in common. To add one, make a room and name its command in
``affinity_pool.cli.commands``.
"""
