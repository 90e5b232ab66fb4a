"""Training is deterministic and its command works."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from evomerge.zoo import SOURCES
from evomerge.zoo.curriculum import BASE
from evomerge.zoo.tokenizer import BOS, EOS, PAD, encode
from evomerge.zoo.train import main, shorten
from evomerge.zoo.training import IGNORED, new_model, to_tensors, train_stage

SHORT = shorten(BASE[0], 3)


def trained(seed: int) -> torch.Tensor:
    model = new_model(seed)
    train_stage(model, SHORT, seed)
    return torch.cat([weight.detach().flatten() for weight in model.parameters()])


def test_same_seed_same_weights() -> None:
    torch.manual_seed(1)
    first = trained(5)
    torch.manual_seed(2)
    assert torch.equal(first, trained(5))
    assert not torch.equal(first, trained(6))


def test_training_lowers_the_loss() -> None:
    losses: list[float] = []
    train_stage(new_model(0), shorten(BASE[0], 25), 0, lambda _, loss: losses.append(loss))
    assert len(losses) == 25
    assert losses[-1] < 0.9 * losses[0]


def test_command_writes_four_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--seed", "3", "--steps", "1", "--out", str(tmp_path)])
    assert {path.name for path in tmp_path.iterdir()} == {"base", *SOURCES}
    for name in ("base", *SOURCES):
        assert (tmp_path / name / "model.safetensors").stat().st_size > 800_000
        assert str(tmp_path) not in (tmp_path / name / "config.json").read_text(encoding="utf-8")
    captured = capsys.readouterr()
    assert "step 1/1" in captured.err
    assert captured.out.count("wrote") == 4


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    assert "--seed" in capsys.readouterr().out


def test_labels_are_on_the_answer_only() -> None:
    ids, labels = to_tensors([("2 + 3", "5"), ("12 + 3", "15")])
    assert ids[0].tolist() == [BOS, *encode("2 + 3\n5"), EOS, PAD, PAD]
    assert labels[0].tolist() == [IGNORED] * 5 + [*encode("5"), EOS, IGNORED, IGNORED]
