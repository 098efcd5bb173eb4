"""What an eviction costs in quality: tasks, measures and reports behind `restkv-eval`."""
