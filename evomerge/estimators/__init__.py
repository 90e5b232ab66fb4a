"""Estimators: which items a candidate answers, and what its scores are worth."""
