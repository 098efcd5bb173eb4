"""restkv-bench: options and tables of what restkv_local.bench measures."""
