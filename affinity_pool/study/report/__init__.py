"""How results are shown.

``page`` is what a page is made of and ``templates`` what it looks like; ``charts``, with ``drawing``, and
``groups_picture`` draw its ``figures``, in the light and dark of ``palette``. ``phrases`` and ``grid`` are what the
pages of experiments share.
"""
