"""How results are shown.

``page`` is what a page is made of, in the one ``style``; ``charts`` and ``groups_picture`` draw its ``figures``, in the
light and dark of ``palette``. Each experiment has a module that tells its summary as a page, in the phrases of
``telling``.
"""
