"""Small tasks of the lm-eval harness on the zoo's sums, as a user would write them."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

ZOO = Path(__file__).parents[2] / "evomerge" / "zoo"

CHAT = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)

TASKS = {
    "sums_generate": """
output_type: generate_until
doc_to_text: "{{question}}\\n"
doc_to_target: "{{answer}}"
target_delimiter: ""
fewshot_delimiter: "\\n"
generation_kwargs: {until: ["."], max_gen_toks: 20}
filter_list:
  - name: number
    filter: [{function: regex, regex_pattern: "([0-9]+)"}, {function: take_first}]
  - name: whole
    filter: [{function: take_first}]
metric_list:
  - {metric: bleu, aggregation: bleu, higher_is_better: true}
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
""",
    "sums_choice": """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: label
target_delimiter: "\\n"
fewshot_delimiter: "\\n"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
  - {metric: mcc, aggregation: matthews_corrcoef, higher_is_better: true}
""",
    "sums_likely": """
output_type: loglikelihood
doc_to_text: "{{question}}\\n{{gold.split(answer)[0]}}{{answer[0]}}"
doc_to_target: "{{gold[(gold.split(answer)[0]|length) + 1:]}}"
target_delimiter: ""
fewshot_delimiter: "\\n"
metric_list:
  - {metric: perplexity, aggregation: perplexity, higher_is_better: false}
  - {metric: acc, aggregation: mean, higher_is_better: true}
""",
    "sums_rolling": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}} {{gold}} {{question}} {{gold}}"
metric_list:
  - {metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}
  - {metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}
""",
}


def write_tasks(folder: Path, train: int = 8, validation: int = 20, test: int = 12) -> Path:
    """Writes data and task YAMLs; returns the folder for `include_path`."""
    lines = (ZOO / "data" / "en_math.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    picked = random.Random(1).sample([r for r in rows if r["split"] == "search"], 60)
    sizes = {"train": train, "validation": validation, "test": test}
    folder.mkdir(parents=True, exist_ok=True)
    for split, size in sizes.items():
        part, picked = picked[:size], picked[size:]
        text = "\n".join(json.dumps(_row(row, number)) for number, row in enumerate(part))
        (folder / f"{split}.json").write_text(text, encoding="utf-8")
    files = {split: str(folder / f"{split}.json") for split, size in sizes.items() if size}
    for name, text in TASKS.items():
        write_task(folder, name, text, files)
    (folder / "group.yaml").write_text(
        "group: sums\ntask: [sums_choice, sums_likely]\n"
        "aggregate_metric_list: [{metric: acc, weight_by_size: true}]\n",
        encoding="utf-8",
    )
    return folder


def write_task(folder: Path, name: str, text: str, files: dict[str, str]) -> None:
    """Writes the YAML of a task on JSON files, by split."""
    roles = {"train": "training_split", "validation": "validation_split", "test": "test_split"}
    head = [f"task: {name}", "dataset_path: json"]
    head += [f"dataset_kwargs: {{data_files: {json.dumps(files)}}}"]
    head += [f"{roles[split]}: {split}" for split in files]
    (folder / f"{name}.yaml").write_text("\n".join(head) + text, encoding="utf-8")


def _row(row: dict[str, Any], number: int) -> dict[str, Any]:
    right, gold = int(row["answer"]), row["gold"]
    others = [gold.replace(row["answer"], str(right + d)) for d in (-10, 1, 11)]
    at = number % 4
    return {
        "question": row["question"],
        "answer": row["answer"],
        "gold": gold,
        "choices": [*others[:at], gold, *others[at:]],
        "label": at,
    }
