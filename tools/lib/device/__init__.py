"""The check of a device, and what its steps start."""
