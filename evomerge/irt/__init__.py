"""Item response theory: items fitted once on many models' answers, abilities from a few answers."""
