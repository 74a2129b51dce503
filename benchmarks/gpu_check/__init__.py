"""What can only be checked on a GPU: ``python benchmarks/gpu_check``, or ``make gpu-check``.

``check`` goes through the stages that ``stages`` lists, ``shell`` runs their commands, ``record`` keeps what comes of
them. ``sanitize`` and ``planted_fault`` are programs that compute-sanitizer runs.
"""
