"""Next-token cross-entropy.

Legend: N positions, V student vocabulary.
"""

from torch import Tensor
from torch.nn import functional as F


def lm_nll(logits_NV: Tensor, labels_N: Tensor) -> Tensor:
    """Negative log-likelihood of each label in nats, fp32 [N]."""
    return F.cross_entropy(logits_NV.float(), labels_N, reduction="none")
