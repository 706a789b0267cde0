"""What a command says instead of a traceback."""


class UserError(Exception):
    """A mistake that the user can mend: one clear sentence that says what to do.

    Commands print the sentence without a traceback and exit with 1. It is not a ValueError: code
    that handles those must not swallow it.
    """
