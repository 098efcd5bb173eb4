"""restkv-chat."""
