"""What the programs in tools/ are made of."""
