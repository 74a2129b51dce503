"""How an experiment is run over many recordings, and what its answers come to.

``folders`` is the folder a run owns, ``resume`` goes on where it was left. ``batches`` goes through the recordings,
``conditions`` answers each batch under several conditions, ``scores`` sums up. ``results`` are the types of all of it.
"""
