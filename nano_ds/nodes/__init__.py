"""The machines of a run: which they are, how they are reached, whether they fit together, how processes start there."""
