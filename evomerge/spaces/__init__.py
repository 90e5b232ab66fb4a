"""Search spaces: what may vary in a merge, one kind of space a file."""
