"""The error that ends a command with one line for the user instead of a traceback."""

from __future__ import annotations


class UserError(ValueError):
    """The user can fix this: the message names the file or option, the cause and the fix (exit code 2)."""


class RunFailure(RuntimeError):
    """Something failed that no argument could have prevented, such as a full disk (exit code 1)."""
