"""The digits and their networks against torch."""

from __future__ import annotations

import builtins

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn", reason="scikit-learn holds the digits")
from sklearn.datasets import load_digits

from evomerge.zoo import digits


@pytest.fixture(scope="module")
def images():
    return digits.load()


def module_of(vector):
    """The same network as torch layers."""
    at = torch.from_numpy(np.array(vector, dtype=np.float64))
    first, last = at[: 65 * 256].view(65, 256), at[65 * 256 :].view(257, 10)
    net = torch.nn.Sequential(
        torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 10)
    ).double()
    for layer, part in ((net[0], first), (net[2], last)):
        layer.weight.data = part[:-1].T.clone()
        layer.bias.data = part[-1].clone()
    return net


def flat(net, of=lambda p: p.detach()):
    parts = [torch.cat([of(net[i].weight).T, of(net[i].bias)[None]]).ravel() for i in (0, 2)]
    return torch.cat(parts).numpy()


def loss(net, part):
    outputs = net(torch.from_numpy(part.pixels).double())
    return torch.nn.functional.cross_entropy(outputs, torch.from_numpy(part.labels))


def test_images_are_in_order_and_split_80_20(images):
    train, test = images
    pixels, labels = load_digits(return_X_y=True)
    assert (len(train), len(test)) == (1437, 360)
    np.testing.assert_array_equal(np.concatenate([train.pixels, test.pixels]), pixels)
    np.testing.assert_array_equal(np.concatenate([train.labels, test.labels]), labels)


def test_unit_scale(images):
    train, _ = digits.load("unit")
    assert train.pixels.max() == 1.0
    np.testing.assert_array_equal(train.pixels * 16, images[0].pixels)
    with pytest.raises(ValueError, match="raw"):
        digits.load("bytes")


@pytest.mark.parametrize("initial", digits.INITIALS)
def test_outputs_are_those_of_torch(images, initial):
    for part in images:
        classifier = digits.Classifier(part)
        for number in range(3):
            vector = digits.fresh(3, number, initial)
            expected = module_of(vector)(torch.from_numpy(part.pixels).double()).detach().numpy()
            np.testing.assert_allclose(classifier.outputs(vector), expected, rtol=1e-4, atol=1e-4)
            right = expected.argmax(axis=1) == part.labels
            assert np.array_equal(classifier.correct(vector), right)
            assert classifier.accuracy(vector) == right.mean()


def test_of_equal_outputs_the_first_counts(images):
    right = digits.Classifier(images[1]).correct(np.zeros(digits.PARAMETERS, np.float32))
    assert np.array_equal(right, images[1].labels == 0)


@pytest.mark.parametrize("vector", [np.zeros(10, np.float32), np.zeros(digits.PARAMETERS)])
def test_other_vectors_are_refused(images, vector):
    with pytest.raises(ValueError, match="expected 19210 float32 numbers"):
        digits.Classifier(images[1]).outputs(vector)


def test_fresh_networks(images):
    normal = digits.fresh(0, 0)
    assert normal.dtype == np.float32
    assert abs(normal.std() - 0.01) < 2e-4 and abs(normal.mean()) < 4e-4
    uniform = digits.fresh(0, 0, "torch")
    np.testing.assert_allclose(np.abs(uniform[: digits.FIRST]).max(), 1 / 8, rtol=1e-3)
    np.testing.assert_allclose(np.abs(uniform[digits.FIRST :]).max(), 1 / 16, rtol=1e-2)
    np.testing.assert_array_equal(digits.fresh(0, 0), normal)
    for seed, number in ((0, 1), (1, 0)):
        assert not np.array_equal(digits.fresh(seed, number), normal)
    with pytest.raises(ValueError, match="torch"):
        digits.fresh(0, 0, "zeros")


def test_the_gradient_is_that_of_torch(images):
    part = images[1]
    vector = digits.fresh(1, 0, "torch").astype(np.float64)
    net = module_of(vector)
    loss(net, part).backward()
    np.testing.assert_allclose(
        digits.gradient(vector, part), flat(net, lambda p: p.grad), rtol=1e-9, atol=1e-12
    )


def test_training_is_adam(images):
    part = images[1].of(0, 4)
    vector = digits.fresh(2, 0)
    net = module_of(vector)
    adam = torch.optim.Adam(net.parameters(), lr=0.003)
    for _ in range(10):
        adam.zero_grad()
        loss(net, part).backward()
        adam.step()
    np.testing.assert_allclose(digits.trained(vector, part), flat(net), rtol=1e-4, atol=1e-6)


def test_pretrained_networks_are_specialists(images):
    train, test = images
    low, high = digits.Classifier(test.of(0, 4)), digits.Classifier(test.of(5, 9))
    first, second = digits.pretrained(0, train)
    assert low.accuracy(first) > 0.7 and high.accuracy(first) == 0
    assert high.accuracy(second) > 0.7 and low.accuracy(second) == 0


def test_part_of_the_images(images):
    part = images[0].of(5, 9)
    assert set(part.labels) == {5, 6, 7, 8, 9}
    assert len(part) + len(images[0].of(0, 4)) == len(images[0])


def test_without_scikit_learn(monkeypatch):
    real = builtins.__import__

    def absent(name, *rest):
        if name.startswith("sklearn"):
            raise ModuleNotFoundError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'evomerge\[digits\]'"):
        digits.load()
