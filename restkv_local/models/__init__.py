"""Model files: the embedded one, those of users, and such with random weights."""
