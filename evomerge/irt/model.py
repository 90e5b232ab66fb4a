"""Items of the two-parameter logistic model, in one or several dimensions, and their file."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evomerge.errors import ConfigError
from evomerge.irt.files import shown, write_whole
from evomerge.types import FloatArray

SCHEMA = 1
SUFFIXES = (".npz", ".json")
_ARRAYS = ("discrimination", "difficulty", "discrimination_error", "difficulty_error")


@dataclass(frozen=True)
class ItemModel:
    """Says how likely each of `N` items is answered right at an ability of `D` dimensions.

    P_i(theta) = sigmoid(alpha_i . theta - beta_i); beta is subtracted once, not once a dimension.

    Attributes:
        items: the items' ids, all different.
        discrimination: alpha, an `N x D` array.
        difficulty: beta, an `N` array.
        discrimination_error: standard errors of `discrimination`, an `N x D` array.
        difficulty_error: standard errors of `difficulty`, an `N` array.
        settings: how the items were fitted, plain data: source, models, priors, constant items.
    """

    items: tuple[str, ...]
    discrimination: FloatArray
    difficulty: FloatArray
    discrimination_error: FloatArray
    difficulty_error: FloatArray
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Checks shapes and values once, so that nothing downstream has to.

        Raises:
            ConfigError: for arrays that do not fit each other or are not finite, or ids that
                appear twice.
        """
        n = len(self.items)
        shape = self.discrimination.shape
        sound = len(shape) == 2 and shape[0] == n > 0 and shape[1] > 0
        sound = sound and self.discrimination_error.shape == shape
        sound = sound and self.difficulty.shape == self.difficulty_error.shape == (n,)
        if not sound:
            shapes = ", ".join(f"{name} {getattr(self, name).shape}" for name in _ARRAYS)
            raise ConfigError.of(
                "item model", f"{n} items, {shapes}", "arrays of N x D, N, N x D and N",
                "Fit the items again: python -m evomerge irt fit.",
            )  # fmt: skip
        bad = [name for name in _ARRAYS if not np.isfinite(getattr(self, name)).all()]
        if bad:
            raise ConfigError.of(
                "item model", f"{' and '.join(bad)} with NaN or infinite values", "finite numbers",
                "Fit the items again: python -m evomerge irt fit.",
            )  # fmt: skip
        if len(self._places) != n:
            raise ConfigError.of(
                "item model", f"{n - len(self._places)} ids that appear twice", "ids, each once",
                "Name every item once.",
            )  # fmt: skip

    def __len__(self) -> int:
        return len(self.items)

    @property
    def dimensions(self) -> int:
        """Number of dimensions of an ability."""
        return int(self.discrimination.shape[1])

    @cached_property
    def _places(self) -> dict[str, int]:
        return {item: i for i, item in enumerate(self.items)}

    def logits(self, ability: ArrayLike) -> FloatArray:
        """alpha . theta - beta; abilities `(..., D)`, logits `(..., N)`."""
        theta = np.asarray(ability, dtype=np.float64)
        if theta.ndim == 0 or theta.shape[-1] != self.dimensions:
            raise ValueError(
                f"found abilities of shape {theta.shape}; expected (..., {self.dimensions})"
            )
        return np.asarray(theta @ self.discrimination.T - self.difficulty)

    def probability(self, ability: ArrayLike) -> FloatArray:
        """Probability of a right answer; abilities `(..., D)`, probabilities `(..., N)`."""
        return sigmoid(self.logits(ability))

    def information(self, ability: ArrayLike) -> FloatArray:
        """Fisher information of each item about the ability, alpha alpha^T P (1 - P).

        Args:
            ability: `(..., D)`.

        Returns:
            `(..., N)` if D is 1, else `(..., N, D, D)`.
        """
        p = self.probability(ability)
        weight = p * (1 - p)
        if self.dimensions == 1:
            return np.asarray(weight * self.discrimination[:, 0] ** 2)
        alpha = self.discrimination
        return np.asarray(weight[..., None, None] * (alpha[:, :, None] * alpha[:, None, :]))

    def at(self, indices: ArrayLike) -> ItemModel:
        """The model of some of the items, in the order given; each at most once."""
        chosen = np.asarray(indices, dtype=np.int64)
        return ItemModel(
            items=tuple(self.items[i] for i in chosen),
            discrimination=self.discrimination[chosen],
            difficulty=self.difficulty[chosen],
            discrimination_error=self.discrimination_error[chosen],
            difficulty_error=self.difficulty_error[chosen],
            settings=self.settings,
        )

    def index(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """Places of items by their ids, an `n` array.

        Raises:
            ConfigError: naming ids that were not fitted.
        """
        unknown = [i for i in ids if i not in self._places]
        if unknown:
            raise ConfigError.of(
                "items", f"{len(unknown)} of {len(ids)} that the fit does not know: "
                f"{shown(unknown)}", f"ids among the {len(self)} fitted: {shown(self.items)}",
                "Fit on answers to the same items, with the same ids.",
            )  # fmt: skip
        return np.array([self._places[i] for i in ids], dtype=np.int64)

    def save(self, path: Path) -> None:
        """Writes the model to a `.npz` or `.json` file, whole or not at all.

        Raises:
            ConfigError: for another suffix.
            EvomergeError: if the disk is full or fails.
        """
        check_suffix(path)
        if path.suffix == ".json":
            content: dict[str, Any] = {"schema": SCHEMA, "items": list(self.items)}
            content |= {name: getattr(self, name).tolist() for name in _ARRAYS}
            content["settings"] = dict(self.settings)
            text = json.dumps(content, ensure_ascii=False, allow_nan=False)
            write_whole(path, text.encode())
            return
        buffer = io.BytesIO()
        arrays: dict[str, Any] = {name: getattr(self, name) for name in _ARRAYS}
        np.savez(
            buffer,
            schema=np.int64(SCHEMA),
            items=np.array(json.dumps(self.items, ensure_ascii=False)),
            settings=np.array(json.dumps(self.settings, ensure_ascii=False, allow_nan=False)),
            **arrays,
        )
        write_whole(path, buffer.getvalue())

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads what `save` wrote; nothing in the file is ever run.

        Raises:
            ConfigError: if it is missing, damaged, something else or of another schema.
        """
        check_suffix(path)
        try:
            content = _read_json(path) if path.suffix == ".json" else _read_npz(path)
            schema = content["schema"]
            if schema != SCHEMA:
                raise ConfigError.of(
                    str(path), f"schema {schema!r}", f"schema {SCHEMA}",
                    "Fit the items again with this version: python -m evomerge irt fit.",
                )  # fmt: skip
            arrays = {name: np.array(content[name], dtype=np.float64) for name in _ARRAYS}
            return cls(
                items=tuple(str(i) for i in content["items"]),
                settings=dict(content["settings"]),
                **arrays,
            )
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise ConfigError.of(
                str(path), f"a missing or damaged file ({error})", "a file of fitted items",
                "Write one: python -m evomerge irt fit MATRIX --out FILE.npz",
            ) from error  # fmt: skip


def sigmoid(logits: FloatArray) -> FloatArray:
    """1 / (1 + exp(-z)) without overflow, of any shape."""
    from scipy.special import expit

    return np.asarray(expit(logits))


def check_suffix(path: Path) -> None:
    """Checks that a file of items is called `.npz` or `.json`.

    Raises:
        ConfigError: if it is not.
    """
    if path.suffix not in SUFFIXES:
        raise ConfigError.of(
            str(path), f"the suffix {path.suffix or 'none'!r}", " or ".join(SUFFIXES),
            "Name the file of fitted items so.",
        )  # fmt: skip


def _read_json(path: Path) -> Mapping[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError("not an object")
    return content


def _read_npz(path: Path) -> Mapping[str, Any]:
    with np.load(path, allow_pickle=False) as file:
        content: dict[str, Any] = {name: file[name] for name in _ARRAYS}
        content["schema"] = int(file["schema"])
        content["items"] = json.loads(str(file["items"]))
        content["settings"] = json.loads(str(file["settings"]))
    return content
