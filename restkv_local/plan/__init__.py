"""What fits: cells, budgets and memory, worked out before a model is loaded."""
