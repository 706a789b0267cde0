"""Training: the loop, the step, the state, the optimizer and the workdir."""
