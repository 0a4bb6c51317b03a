"""From final states to logits: one place for capture, training, evaluation and replay.

Shapes: N positions, V vocabulary (R rows, where it is the teacher's), D hidden size.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class OutputHead:
    """How a language model makes logits: c tanh(z / c) of z = scale * states @ weight.T + bias, or z without a cap."""

    weight_VD: Tensor
    bias_V: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None  # c, the largest absolute logit (Gemma 2)

    def scaled(self, hidden_ND: Tensor) -> Tensor:
        """What the matrix is multiplied by: states, or their gradient on the way back."""
        return hidden_ND if self.scale == 1.0 else hidden_ND * self.scale

    def cap_(self, product_NV: Tensor) -> Tensor | None:
        """Make logits of z in place; returns their slope, which a gradient is multiplied by, or None without a cap."""
        if self.softcap is None:
            return None
        slope_NV = 1.0 - product_NV.div_(self.softcap).tanh_().square()
        product_NV.mul_(self.softcap)
        return slope_NV

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """Logits of all V ids, [N, V], in the weights' dtype."""
        product_NV = self.scaled(hidden_ND.to(self.weight_VD.dtype)) @ self.weight_VD.T
        return self._finished(product_NV if self.bias_V is None else product_NV.add_(self.bias_V))

    def logits_of(self, hidden_ND: Tensor, ids_NK: Tensor) -> Tensor:
        """fp32 logits of K ids of each position's own, [N, K]; no other row of the matrix is read."""
        rows_NKD = torch.nn.functional.embedding(ids_NK, self.weight_VD).float()
        product_NK = torch.einsum("nd,nkd->nk", self.scaled(hidden_ND.float()), rows_NKD)
        return self._finished(product_NK if self.bias_V is None else product_NK + self.bias_V.float()[ids_NK])

    def to_dtype(self, dtype: torch.dtype) -> "OutputHead":
        """The same head with detached weights of another dtype."""
        bias_V = None if self.bias_V is None else self.bias_V.detach().to(dtype)
        return replace(self, weight_VD=self.weight_VD.detach().to(dtype), bias_V=bias_V)

    def _finished(self, logits: Tensor) -> Tensor:
        return logits if self.softcap is None else self.softcap * (logits / self.softcap).tanh()
