"""Real hosts on one machine, and what can happen to them."""

from cluster.hosts import ENV, Cluster, Node, missing

__all__ = ["ENV", "Cluster", "Node", "missing"]
