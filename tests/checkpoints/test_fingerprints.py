"""A fingerprint stands for every byte of the weights, and is not computed twice for large ones."""

import os

import pytest
import torch
from checkpoint_models import write_folder

from evomerge.checkpoints import files
from evomerge.checkpoints.checkpoint import Checkpoint


@pytest.mark.parametrize("small", [0, 1 << 30])
def test_one_number_in_the_middle_counts(tmp_path, monkeypatch, small):
    monkeypatch.setattr(files, "_SMALL", small)
    tensors = {"a.weight": torch.zeros(300_000), "b.weight": torch.zeros(300_000)}
    one = Checkpoint(str(write_folder(tmp_path / "one", tensors)))
    same = Checkpoint(str(write_folder(tmp_path / "same", tensors)))
    tensors["a.weight"][299_999] = 1.0
    other = Checkpoint(str(write_folder(tmp_path / "other", tensors)))
    assert one.fingerprint == same.fingerprint != other.fingerprint


def test_a_large_model_is_read_once_and_again_when_it_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_SMALL", 0)
    folder = write_folder(tmp_path / "m", {"a.weight": torch.zeros(10)})
    passes = []
    original = files.WeightFiles._hash
    monkeypatch.setattr(files.WeightFiles, "_hash", lambda self: passes.append(1) or original(self))
    first = Checkpoint(str(folder)).fingerprint
    assert Checkpoint(str(folder)).fingerprint == first
    assert len(passes) == 1
    write_folder(folder, {"a.weight": torch.ones(10)})
    os.utime(folder / "model.safetensors", ns=(1, 1))
    assert Checkpoint(str(folder)).fingerprint != first
    assert len(passes) == 2
