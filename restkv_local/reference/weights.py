"""Read a GGUF file: its settings, and its tensors dequantised to float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from ..errors import ModelError
from .rounding import ACTIVATION_OF_WEIGHT, round_activation


class Linear:
    """A weight matrix [n_out, n_in] (experts: [n_expert, n_out, n_in]) with an optional bias.

    activation: what ggml rounds the input to before the product ("f32": not at all).
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, activation: str) -> None:
        self.weight = weight
        self.bias = bias
        self.activation = activation

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x [n, n_in] -> [n, n_out]."""
        y = round_activation(x, self.activation) @ self.weight.T
        return y if self.bias is None else y + self.bias

    def expert(self, index: int) -> Linear:
        """The matrix of one expert."""
        bias = None if self.bias is None else self.bias[index]
        return Linear(self.weight[index], bias, self.activation)


class Weights:
    """A GGUF file.

    path: one file that holds every tensor. round_activations: reproduce the 8-bit (16-bit) activations that ggml uses
    with quantized (half precision) weights; False multiplies in float32.
    Raises ModelError when the file cannot be read.
    """

    def __init__(self, path: str | Path, *, round_activations: bool = True) -> None:
        try:
            self._reader = gguf.GGUFReader(str(path))
        except (OSError, ValueError) as error:
            raise ModelError(f"'{path}' cannot be read as GGUF ({error}); give the path of a .gguf file") from error
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        self._round = round_activations
        if int(self.setting("split.count", 1)) > 1:
            raise ModelError(f"'{path}' is split over several files; join them with llama-gguf-split --merge")
        self.arch = str(self.setting("general.architecture", ""))

    def setting(self, key: str, default: Any = None) -> Any:
        """Value of a metadata key, or the default."""
        field = self._reader.get_field(key)
        return default if field is None else field.contents()

    def arch_setting(self, key: str, default: Any = None) -> Any:
        """Value of a metadata key below the architecture's name, as "attention.head_count"."""
        return self.setting(f"{self.arch}.{key}", default)

    def has(self, name: str) -> bool:
        """Whether the file holds a tensor of this name."""
        return name in self._tensors

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor in float32, row-major, slowest axis first (the reverse of ggml's order). Raises ModelError."""
        if name not in self._tensors:
            raise ModelError(f"the model has no tensor '{name}'; it is damaged or of an unknown family")
        info = self._tensors[name]
        values = gguf.quants.dequantize(info.data, info.tensor_type)
        shape = [int(n) for n in reversed(info.shape)]
        return torch.from_numpy(np.array(values, dtype=np.float32).reshape(shape))

    def optional(self, name: str) -> torch.Tensor | None:
        """A tensor, or None when the file does not hold it."""
        return self.tensor(name) if self.has(name) else None

    def linear(self, name: str) -> Linear:
        """The matrix `name`.weight with `name`.bias when there is one."""
        weight = self.tensor(f"{name}.weight")
        kind = "f32"
        if self._round:
            qtype = self._tensors[f"{name}.weight"].tensor_type
            if qtype not in ACTIVATION_OF_WEIGHT:
                raise ModelError(f"{name} is stored as {qtype.name}, which the reference cannot round as ggml does; "
                                 "pass round_activations=False")  # fmt: skip
            kind = ACTIVATION_OF_WEIGHT[qtype]
        return Linear(weight, self.optional(f"{name}.bias"), kind)
