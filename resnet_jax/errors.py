"""What a command says instead of a traceback."""


class UserError(ValueError):
    """A mistake that the user can mend: one clear sentence that says what to do.

    Commands print the sentence without a traceback and exit with 1.
    """
