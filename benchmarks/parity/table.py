"""The table for people."""

from __future__ import annotations

from typing import Any

from compare import Row


def markdown(rows: list[Row], about: dict[str, Any], seconds: float) -> str:
    out=[]
    for r in rows:
        e = "" if r.ours is None else f"err {r.ours:.3g} {r.theirs:.3g} {r.nearer}"
        z = "" if r.z is None else f"z {r.z}"
        out.append(f"{r.case:36} {r.architecture:11} {r.mode:20} {r.verdict:20} same {r.same:.4f} units {r.units:.3g} apart {r.apart:.4f} doubt {r.doubtful} {e} {z}")
        out += [f"      {n}" for n in r.notes[:4]]
    return "\n".join(out)
