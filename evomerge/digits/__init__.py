"""The digits experiment of M2N2: searches over all 19 210 parameters of a small network."""
