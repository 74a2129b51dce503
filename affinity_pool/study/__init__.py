"""The paper's study, and the demo. Needs the extra ``affinity_pool[study]``.

A room for each experiment is in ``experiments``: its run, its page and its command. What they share:

- ``subject``: the model under study; ``prompts``: how each family is asked;
- ``data``: recordings, manifests, data sets, word times;
- ``reductions``: what stands in for Affinity Pooling; ``groups``: which audio tokens a token stands for;
- ``runs``: batches of recordings under several conditions, kept in a folder, resumed, shared by processes;
- ``metrics``: how right an answer is, with intervals; ``efficiency``: operations and time to first token;
- ``report``: pages and charts. It knows no experiment;
- ``sites``: sites as users write them; ``errors``: what a user can mend; ``bundled``: where the bundled model is.
"""
