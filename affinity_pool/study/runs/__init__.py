"""How an experiment is run over many recordings, and what its answers come to.

``folders`` is the folder a run owns, ``identity`` what the run was given. ``batches`` goes through the recordings and
goes on where a run was left, ``conditions`` answers each batch under several conditions, ``scores`` sums up.
"""
