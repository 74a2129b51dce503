"""The one error that a user can do something about."""


class InputError(ValueError):
    """Something the user gave cannot be used. The message says what, and what would do; commands print it as it is."""
