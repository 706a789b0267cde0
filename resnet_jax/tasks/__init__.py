"""What a network is trained for; each task has its metrics and its way to evaluate."""
