"""What pooling saves where a model is served: one server of vLLM, requests with and without pooling in turns.

``checkpoints`` makes models that vLLM serves on a small machine, ``server`` starts and stops it, ``client`` asks it
through the OpenAI client, ``load`` keeps it busy, and ``run`` compares.
"""
