"""Small images of digits, and a network for them whose parameters are one vector.

The images are scikit-learn's: 1797 of 8 x 8 pixels, in their order, the first 80% for training.
The network has 64 inputs, 256 rectified units and 10 outputs; its 19 210 parameters stand as
`65 x 256` (weights, then biases) followed by `257 x 10`.

Source: the digits experiment of Competition and Attraction Improve Model Fusion (M2N2, 2025).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]

PIXELS, HIDDEN, CLASSES = 64, 256, 10
FIRST = (PIXELS + 1) * HIDDEN
PARAMETERS = FIRST + (HIDDEN + 1) * CLASSES
"""Numbers of one network: 19 210."""

SCALES = {"raw": 1.0, "unit": 1 / 16}
"""What grey levels, 0 to 16, are multiplied by."""

INITIALS = ("normal", "torch")
"""Fresh networks: all parameters N(0, 0.01^2), or as `torch.nn.Linear` draws them."""

_TRAIN_SHARE = 0.8
_ROWS = 360  # images at a time, so that the hidden layer stays in a core's cache
_DEVIATION = 0.01
_RATE, _STEPS = 0.003, 10


@dataclass(frozen=True, eq=False)
class Images:
    """Some of the images.

    Attributes:
        pixels: grey levels, an `n x 64` array.
        labels: the digits that they show, an `n` array.
    """

    pixels: Vector
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def of(self, low: int, high: int) -> Images:
        """Those that show a digit from `low` to `high`, both included."""
        chosen = (self.labels >= low) & (self.labels <= high)
        return Images(self.pixels[chosen], self.labels[chosen])


def load(scale: str = "raw") -> tuple[Images, Images]:
    """The 1437 images for training and the 360 for testing.

    Args:
        scale: `raw` for grey levels from 0 to 16, `unit` for 0 to 1.

    Raises:
        ModuleNotFoundError: without scikit-learn, which holds the images.
        ValueError: for another scale.
    """
    if scale not in SCALES:
        raise ValueError(f"expected one of {tuple(SCALES)}, found {scale}")
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the digits are scikit-learn's, which is not installed: pip install 'evomerge[digits]'",
            name="sklearn",
        ) from error
    pixels, labels = load_digits(return_X_y=True)
    scaled = np.ascontiguousarray(pixels * SCALES[scale], dtype=np.float32)
    cut = int(len(labels) * _TRAIN_SHARE)
    whole = np.asarray(labels, dtype=np.int64)
    return Images(scaled[:cut], whole[:cut]), Images(scaled[cut:], whole[cut:])


class Classifier:
    """Runs networks on the same images, one after the other, without allocating anew."""

    def __init__(self, images: Images) -> None:
        """Lays out the images with a constant input for the biases."""
        self.labels = images.labels
        ones = np.ones((len(images), 1), dtype=np.float32)
        inputs = np.ascontiguousarray(np.concatenate([images.pixels, ones], axis=1))
        self._outputs = np.empty((len(images), CLASSES), dtype=np.float32)
        rows = min(_ROWS, len(images))
        hidden = np.empty((rows, HIDDEN), dtype=np.float32)
        # numpy's maximum is several times faster with an array of zeros than with one zero
        zeros = np.zeros_like(hidden)
        self._parts = []
        for start in range(0, len(images), rows):
            part, out = inputs[start : start + rows], self._outputs[start : start + rows]
            self._parts.append((part, hidden[: len(part)], zeros[: len(part)], out))

    def outputs(self, vector: Vector) -> Vector:
        """Unscaled log-probabilities, an `n x 10` array that the next call overwrites.

        Raises:
            ValueError: for a vector of another size or type.
        """
        if vector.shape != (PARAMETERS,) or vector.dtype != np.float32:
            raise ValueError(
                f"expected {PARAMETERS} float32 numbers, found {vector.shape} {vector.dtype}"
            )
        first = vector[:FIRST].reshape(PIXELS + 1, HIDDEN)
        last = vector[FIRST:].reshape(HIDDEN + 1, CLASSES)
        for part, hidden, zeros, out in self._parts:
            np.matmul(part, first, out=hidden)
            np.maximum(hidden, zeros, out=hidden)
            np.matmul(hidden, last[:HIDDEN], out=out)
        return np.add(self._outputs, last[HIDDEN], out=self._outputs)

    def correct(self, vector: Vector) -> NDArray[np.bool_]:
        """Whether each image is recognised, an `n` array; of equal outputs the first counts."""
        return np.asarray(self.outputs(vector).argmax(axis=1) == self.labels)

    def accuracy(self, vector: Vector) -> float:
        """Share of the images that are recognised."""
        return float(self.correct(vector).mean())


def fresh(seed: int, number: int, initial: str = "normal") -> Vector:
    """An untrained network.

    Args:
        seed: of the experiment.
        number: of the network within it.
        initial: one of `INITIALS`.

    Raises:
        ValueError: for another way to begin.
    """
    if initial not in INITIALS:
        raise ValueError(f"expected one of {INITIALS}, found {initial}")
    rng = np.random.default_rng([seed, number])
    if initial == "normal":
        return rng.standard_normal(PARAMETERS, dtype=np.float32) * np.float32(_DEVIATION)
    uniform = rng.uniform(-1.0, 1.0, PARAMETERS)
    uniform[:FIRST] /= PIXELS**0.5
    uniform[FIRST:] /= HIDDEN**0.5
    return uniform.astype(np.float32)


def pretrained(seed: int, train: Images, initial: str = "normal") -> tuple[Vector, Vector]:
    """Two networks, one trained on the digits 0 to 4 and one on 5 to 9.

    Training is 10 steps of Adam (Kingma and Ba, arXiv 1412.6980) at a rate of 0.003, each on
    all images of these digits.
    """
    return (
        trained(fresh(seed, 0, initial), train.of(0, 4)),
        trained(fresh(seed, 1, initial), train.of(5, 9)),
    )


def trained(vector: Vector, images: Images, steps: int = _STEPS) -> Vector:
    """The network after some steps of Adam on all images."""
    at = vector.astype(np.float64)
    mean, square = np.zeros_like(at), np.zeros_like(at)
    for step in range(1, steps + 1):
        slope = gradient(at, images)
        mean = 0.9 * mean + 0.1 * slope
        square = 0.999 * square + 0.001 * slope**2
        root = np.sqrt(square / (1 - 0.999**step)) + 1e-8
        at -= _RATE * mean / (1 - 0.9**step) / root
    return at.astype(np.float32)


def gradient(vector: NDArray[np.float64], images: Images) -> NDArray[np.float64]:
    """Slope of the mean cross-entropy (nats) in each parameter, in double precision."""
    count = len(images)
    first = vector[:FIRST].reshape(PIXELS + 1, HIDDEN)
    last = vector[FIRST:].reshape(HIDDEN + 1, CLASSES)
    ones = np.ones((count, 1))
    inputs = np.concatenate([images.pixels, ones], axis=1)
    hidden = np.concatenate([np.maximum(inputs @ first, 0), ones], axis=1)
    outputs = hidden @ last
    shares = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    shares[np.arange(count), images.labels] -= 1
    shares /= count
    back = (shares @ last[:HIDDEN].T) * (hidden[:, :HIDDEN] > 0)
    return np.concatenate([(inputs.T @ back).ravel(), (hidden.T @ shares).ravel()])
