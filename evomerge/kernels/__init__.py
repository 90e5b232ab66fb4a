"""How merged values are computed: plans, statistics and the loops that carry them out."""
