"""restkv-eval: options and tables of restkv_local.eval."""
