"""Copies of a study for other tools: one tracker a file, all off by default. See docs/live.md."""
