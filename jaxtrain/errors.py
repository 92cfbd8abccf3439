"""The one error that a user, not a programmer, is meant to read."""


class UserError(Exception):
    """Say in one line what is wrong, where, and what to do next; `main` prints it and exits with code 2."""
