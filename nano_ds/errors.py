"""The error that ends a command with one line for the user instead of a traceback."""

from __future__ import annotations


class UserError(ValueError):
    """The user can fix this: the message names the file or option, the cause and the fix (exit code 2)."""


class RunFailure(RuntimeError):
    """Something failed that no argument could have prevented, such as a full disk (exit code 1)."""


class PeerLost(RunFailure):
    """Another process of the run has ended or cannot be reached: a consequence, whose cause is told elsewhere."""


def brief(e: BaseException) -> str:
    """The first line of what an error says; its kind when it says nothing."""
    said = e.strerror if isinstance(e, OSError) and e.strerror else str(e)
    return said.partition("\n")[0] or type(e).__name__
