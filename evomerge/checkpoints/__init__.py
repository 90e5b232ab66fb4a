"""Reading, checking, merging and writing model checkpoints."""
