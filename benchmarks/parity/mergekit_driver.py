"""Runs recipes with mergekit; started in mergekit's environment, not in ours.

    python mergekit_driver.py JOBS

JOBS is a JSON file: a list of {"recipe": YAML file, "out": folder}. One JSON line is printed a
job: {"index", "seconds", "error": null or text}. A line `{"version": ...}` comes first.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import logging
import sys
import time
from pathlib import Path


def main(jobs: Path) -> None:
    """Runs all jobs, whatever becomes of each."""
    import torch
    import yaml
    from mergekit.config import MergeConfiguration
    from mergekit.merge import MergeOptions, run_merge
    from mergekit.merge_methods import registered_methods

    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    answers = sys.stdout
    first = {
        "version": importlib.metadata.version("mergekit"),
        "torch": torch.__version__,
        "methods": sorted(m.spec.name for m in registered_methods()),
    }
    print(json.dumps(first), file=answers, flush=True)
    for index, job in enumerate(json.loads(jobs.read_text("utf-8"))):
        started = time.perf_counter()
        error = None
        with contextlib.redirect_stdout(sys.stderr):
            try:
                data = yaml.safe_load(Path(job["recipe"]).read_text("utf-8"))
                config = MergeConfiguration.model_validate(data)
                options = MergeOptions(
                    random_seed=1234,
                    quiet=True,
                    write_model_card=False,
                    lora_merge_cache=str(jobs.parent / "adapters"),
                )
                run_merge(config, job["out"], options)
            except Exception as problem:
                error = f"{type(problem).__name__}: {problem}"
        seconds = round(time.perf_counter() - started, 3)
        answer = {"index": index, "seconds": seconds, "error": error}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
