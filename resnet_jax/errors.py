"""Errors that a command reports in one line, without a traceback, and names of files in them."""


class UserError(Exception):
    """A mistake that the user can correct: one clear sentence that says what to do.

    Commands print the sentence without a traceback and exit with 1. It is not a ValueError: code
    that handles those must not swallow it.
    """


def readable(name: str) -> str:
    """A text that holds names of files, with \\xNN for each byte that is not UTF-8.

    Python keeps such bytes as lone surrogates, which neither UTF-8 nor JSON can hold.
    """
    return name.encode('utf-8', 'surrogateescape').decode('utf-8', 'backslashreplace')


def reason(error: Exception) -> str:
    """The kind and the text of an error of a library, in one line and cut off, for a sentence."""
    return f'{type(error).__name__}: {" ".join(str(error).split())[:200]}'.rstrip(': ')
