"""Engines: each holds one running model, takes weights in place, generates or scores text.

Nothing heavy is imported here; `evomerge.engines.auto.make_engine` imports what it needs.
"""
