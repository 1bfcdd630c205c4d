"""Real hosts on one machine, and what can happen to them."""

from cluster.hosts import ENV, Cluster, Node, Process, missing

__all__ = ["ENV", "Cluster", "Node", "Process", "missing", "require"]


def require() -> None:
    """Skips the test where no hosts can be made; in CI as root, where they can, that is a failure."""
    import os

    import pytest

    why = missing()
    if why and os.environ.get("CI") == "true" and os.geteuid() == 0:
        pytest.fail(f"no hosts in CI: {why}")
    if why:
        pytest.skip(why)
