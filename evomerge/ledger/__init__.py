"""What every recipe answered to every item, kept so that nothing is asked twice."""

from evomerge.ledger.items import item_digest
from evomerge.ledger.segments import check_folder, is_ledger, read_ledger, segment_rows
from evomerge.ledger.store import Answer, Ledger

__all__ = [
    "Answer",
    "Ledger",
    "check_folder",
    "is_ledger",
    "item_digest",
    "read_ledger",
    "segment_rows",
]
