"""Losses between hidden states of two models: per-position values, scale-free by construction.

Shapes: W windows, P positions of a run (padded), D hidden size.
A mask [W, P] is True at real positions; values elsewhere are 0.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

RELATION_TEMPERATURE = 0.2
CONTRASTIVE_TEMPERATURE = 0.1


def paired_layer(layer: int, n_layers: int, n_other: int) -> int:
    """The layer of a model of depth `n_other` at the same relative depth, rounded half up.

    Layers count from 0 (embeddings) to the depth itself (last layer). Defined for every layer in both directions,
    whichever model is deeper; ends map to ends.
    """
    return (2 * layer * n_other + n_layers) // (2 * n_layers)


def cosine_distance(student_WPD: Tensor, teacher_WPT: Tensor, mask_WP: Tensor) -> Tensor:
    """1 - cosine of each pair of states, in [0, 2], fp32 [W, P]; blind to the scale of either side."""
    distance_WP = 1.0 - F.cosine_similarity(student_WPD.float(), teacher_WPT.float(), dim=-1)
    return distance_WP * mask_WP


def relation_kl(student_WPD: Tensor, teacher_WPT: Tensor, mask_WP: Tensor) -> Tensor:
    """KL between the rows of the teacher's and the student's similarity matrices, in nats, fp32 [W, P].

    A row is the softmax of a state's cosines with the other states of its run, centred on the run's mean.
    Needs no common width, head count or depth; blind to scale and to rotations of either side
    (relation distillation: Park et al. 2019; Wang et al. 2020).
    """
    left_out_WPP = _left_out(mask_WP)
    teacher = _relation_logprobs(teacher_WPT, mask_WP, left_out_WPP)
    student = _relation_logprobs(student_WPD, mask_WP, left_out_WPP)
    kl_WPP = teacher.exp() * (teacher - student).masked_fill(left_out_WPP, 0.0)
    return kl_WPP.sum(-1) * mask_WP


def _left_out(mask_WP: Tensor) -> Tensor:
    """[W, P, P]: pairs that count for nothing: a position with itself, and padding."""
    itself = torch.eye(mask_WP.shape[1], dtype=torch.bool, device=mask_WP.device)
    return itself | ~mask_WP[:, None, :]


def _relation_logprobs(states_WPD: Tensor, mask_WP: Tensor, left_out_WPP: Tensor) -> Tensor:
    """Row-wise log-softmax of similarities to the other positions of a run, fp32 [W, P, P]."""
    weights_WP1 = mask_WP.float()[..., None]
    states = states_WPD.float()
    mean = (states * weights_WP1).sum(1, keepdim=True) / weights_WP1.sum(1, keepdim=True).clamp_min(1.0)
    unit = F.normalize(states - mean, dim=-1)
    similarity_WPP = unit @ unit.transpose(1, 2) / RELATION_TEMPERATURE
    logprobs: Tensor = similarity_WPP.masked_fill(left_out_WPP, torch.finfo(torch.float32).min).log_softmax(-1)
    return logprobs


def contrastive_nll(student_WPD: Tensor, teacher_WPT: Tensor, mask_WP: Tensor) -> Tensor:
    """InfoNCE of each position in nats, fp32 [W, P]: find the teacher's state of the same position in the run.

    The negatives are the other positions of the same run, so that the value does not depend on how windows are
    split into batches (van den Oord et al. 2018).
    """
    student = F.normalize(student_WPD.float(), dim=-1)
    teacher = F.normalize(teacher_WPT.float(), dim=-1)
    logits_WPP = student @ teacher.transpose(1, 2) / CONTRASTIVE_TEMPERATURE
    logits_WPP = logits_WPP.masked_fill(~mask_WP[:, None, :], torch.finfo(torch.float32).min)
    own = torch.arange(student.shape[1], device=student.device).expand(mask_WP.shape)
    nll_WP = F.cross_entropy(logits_WPP.transpose(1, 2), own, reduction="none")
    return nll_WP * mask_WP
