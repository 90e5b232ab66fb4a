"""Turns run directories into pages, tables and a model card; reads files, never live objects."""

from evomerge.report.card import model_card
from evomerge.report.comparison import compare
from evomerge.report.comparison_page import common_parent, write_compared, write_comparison
from evomerge.report.comparison_text import comparison_markdown, comparison_table
from evomerge.report.page import render_page, write_report
from evomerge.report.table import results_markdown, results_table
from evomerge.report.verdict import verdict

__all__ = [
    "common_parent",
    "compare",
    "comparison_markdown",
    "comparison_table",
    "model_card",
    "render_page",
    "results_markdown",
    "results_table",
    "verdict",
    "write_compared",
    "write_comparison",
    "write_report",
]
