"""How a network is trained: the loop, the program, the step, the state, and what a run leaves."""
