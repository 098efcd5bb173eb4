"""`restkv-chat doctor`."""
