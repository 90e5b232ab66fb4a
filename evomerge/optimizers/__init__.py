"""Optimisers: one a file, all with `ask` and `tell`, always maximising."""
