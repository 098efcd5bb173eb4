"""What the benchmarks measure. Draws nothing; the command lines are in cli/bench."""
