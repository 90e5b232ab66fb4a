"""Running the first blocks of a model alone."""

from __future__ import annotations

from typing import Any

from torch import nn

from evomerge.checkpoints.deepening import Places, too_deep
from evomerge.checkpoints.layout import layout_of


class Depth:
    """The blocks of a torch model, the last of which can be taken out and put back.

    Attributes:
        most: how many there are.
        places: what each of them computes, whatever its weights.
    """

    def __init__(self, model: Any) -> None:
        """Finds the blocks by the names of the model's parameters."""
        layout = layout_of(name for name, _ in model.named_parameters())
        holder, _, self._name = layout.prefix.rpartition(".")
        self._holder: Any = model.get_submodule(holder)
        self._config: Any = model.config.get_text_config()
        self._all = list(getattr(self._holder, self._name)) if layout.blocks else []
        self.most = self._now = len(self._all)
        self.places = Places(self._config.to_dict(), self.most)

    def keep(self, count: int) -> bool:
        """Lets the first `count` blocks run.

        Returns:
            Whether that is another number than before.

        Raises:
            CandidateError: if there are not so many.
        """
        if count > self.most:
            raise too_deep(count, self.most)
        if count == self._now or not count:
            return False
        setattr(self._holder, self._name, nn.ModuleList(self._all[:count]))
        self._config.num_hidden_layers = self._now = count
        return True
