"""Turns a run directory into a page, a table and a model card; reads files, never live objects."""

from evomerge.report.card import model_card
from evomerge.report.page import render_page, write_report
from evomerge.report.table import results_markdown, results_table
from evomerge.report.verdict import verdict

__all__ = [
    "model_card",
    "render_page",
    "results_markdown",
    "results_table",
    "verdict",
    "write_report",
]
