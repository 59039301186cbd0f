"""The one exception that stands for "the input is wrong, not the program"."""


class HapError(Exception):
    """Bad input: a value, a file or a folder of the user's. The message says what is wrong, where, and what
    to do. Programs print it alone, without a traceback, and exit with status 2."""
