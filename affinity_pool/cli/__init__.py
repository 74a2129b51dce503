"""The command line. ``commands`` names them all, ``options`` what several of them take, ``application`` what all share.

The commands of experiments are in their rooms, ``affinity_pool.study.experiments``.
"""
