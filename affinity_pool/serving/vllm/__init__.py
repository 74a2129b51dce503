"""Affinity Pooling at the input of vLLM's speech language models, at one ``pip install``.

vLLM finds :func:`register` by its entry point ``vllm.general_plugins`` and calls it in each of its processes. How many
tokens a clip takes is fixed there before the encoder runs, in another process than the model's: so what is pooled is a
share of them, by :func:`affinity_pool.pool_to`. The engine never compares the tokens that a clip was promised with the
rows that come; more are cut off in silence, fewer end it. Here both come from one number, which travels with the clip.

- ``settings``: what may be written in a model's config and in a request; ``promise``: how many rows a clip is left;
- ``seam``: the two classes of vLLM that are wrapped, for every model alike, and ``special`` for two that need more;
  ``batches``: how much audio is encoded at once; ``engine``: what is looked at when an engine starts;
- ``architectures``: which models; ``versions``: which releases; ``models``: the classes as vLLM asks for them.

Importing this imports no vllm. A deep site and ``positions="keep"`` are not to be had: see docs/serving.md.
"""

from __future__ import annotations


def register() -> None:
    """Put the pooled classes before vLLM's own, if this is a release for which they are made; else say that it is not.

    vLLM calls it, in every process and maybe more than once.
    """
    from . import engine, versions

    if why := versions.unfit():
        engine.logger().warning("audio tokens are not pooled: %s", why)
        return
    engine.take()
