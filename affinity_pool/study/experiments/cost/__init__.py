"""What pooling saves: time to first token, memory, KV cache, decoding speed and operations, by length of the audio.

``architectures`` makes models, ``prompts`` what they are given, ``measure`` runs both, with the help of ``memory`` and
``parts`` (where the time goes), and ``run`` goes through all cases and keeps the figures.
"""
