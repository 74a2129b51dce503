"""Affinity Pooling where models are served: inside vLLM, at a promised count, or in front of an engine as it is."""
