"""What a study shows while it runs: its state, and the views of it. Imports nothing heavy."""

from evomerge.live.state import Budget, Failure, Rates, Searching, State, Work
from evomerge.live.view import LOGS, View

__all__ = ["LOGS", "Budget", "Failure", "Rates", "Searching", "State", "View", "Work"]
