"""What stands for "the input is wrong, not the program", and how foreign names are shown."""

import unicodedata


class HapError(Exception):
    """Bad input: a value, a file or a folder of the user's. The message says what is wrong, where, and what
    to do. Programs print it alone, without a traceback, and exit with status 2."""


class BadSample(Exception):
    """This one sample cannot be used; the message says why. The Dataset replaces it."""


class Unwanted(BadSample):
    """A sample that is whole, but not of the kind that was asked for. Replaced and named; no damage."""


_UNSEEN = frozenset(
    {"Cc", "Cf", "Cs", "Zl", "Zp"}
)  # control, format, half characters; line and paragraph ends


def printable(text: str) -> str:
    """A name on one line that does nothing to a terminal: line breaks, escape codes and bytes that are not
    UTF-8 are written as in a Python string (`\\n`, `\\x1b`, `\\xe9`). Everything else stays."""
    if text.isprintable():
        return text
    shown = (c.encode("unicode_escape").decode() if unicodedata.category(c) in _UNSEEN else c for c in text)
    return "".join(f"\\x{c[4:]}" if c.startswith("\\udc") else c for c in shown)
