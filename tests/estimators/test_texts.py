"""Embeddings of texts, against a forward pass of one text at a time."""

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from evomerge.errors import ConfigError
from evomerge.estimators.texts import embed
from evomerge.zoo import zoo_path

TEXTS = ["Tom has 3 apples.", "", "How many birds are there if two of the five fly away?"]


def test_each_text_is_the_mean_of_its_own_states():
    torch.set_num_threads(1)
    folder = zoo_path("models/base")
    found = embed(TEXTS, folder)
    model, tokenizer = (
        AutoModel.from_pretrained(folder).eval(),
        AutoTokenizer.from_pretrained(folder),
    )
    for row, text in zip(found, TEXTS, strict=True):
        ids = tokenizer(text, return_tensors="pt")["input_ids"].long()
        if not ids.shape[1]:
            assert not row.any()
            continue
        with torch.inference_mode():
            mean = model(input_ids=ids).last_hidden_state[0].float().mean(0).numpy()
        assert np.allclose(row, mean / np.linalg.norm(mean), atol=1e-3)


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"without config\.json"):
        embed(TEXTS, tmp_path)
