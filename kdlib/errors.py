"""The one exception a user is meant to read."""


class KDError(Exception):
    """A mistake or a missing thing the user can act on: says what was expected, what was found, what to do."""
