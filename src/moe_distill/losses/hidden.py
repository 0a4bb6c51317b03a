"""Losses between hidden states of two models: per-position values, scale-free by construction.

Legend: W windows, R positions of a run (padded), D hidden size.
A mask [W, R] is True at real positions; values elsewhere are 0.
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


def cosine_distance(student_WRD: Tensor, teacher_WRD: Tensor, mask_WR: Tensor) -> Tensor:
    """1 - cosine of each pair of states, in [0, 2], fp32 [W, R]; blind to the scale of either side."""
    distance_WR = 1.0 - F.cosine_similarity(student_WRD.float(), teacher_WRD.float(), dim=-1)
    return distance_WR * mask_WR


def relation_kl(student_WRD: Tensor, teacher_WRD: Tensor, mask_WR: Tensor) -> Tensor:
    """KL between the rows of the teacher's and the student's similarity matrices, in nats, fp32 [W, R].

    A row is the softmax of a state's cosines with the other states of its run, centred on the run's mean.
    Needs no common width, head count or depth; blind to scale and to rotations of either side
    (relation distillation: Park et al. 2019; Wang et al. 2020).
    """
    left_out_WRR = _left_out(mask_WR)
    teacher = _relation_logprobs(teacher_WRD, mask_WR, left_out_WRR)
    student = _relation_logprobs(student_WRD, mask_WR, left_out_WRR)
    kl_WRR = teacher.exp() * (teacher - student).masked_fill(left_out_WRR, 0.0)
    return kl_WRR.sum(-1) * mask_WR


def _left_out(mask_WR: Tensor) -> Tensor:
    """[W, R, R]: pairs that count for nothing: a position with itself, and padding."""
    itself = torch.eye(mask_WR.shape[1], dtype=torch.bool, device=mask_WR.device)
    return itself | ~mask_WR[:, None, :]


def _relation_logprobs(states_WRD: Tensor, mask_WR: Tensor, left_out_WRR: Tensor) -> Tensor:
    """Row-wise log-softmax of similarities to the other positions of a run, fp32 [W, R, R]."""
    weights_WR1 = mask_WR.float()[..., None]
    states = states_WRD.float()
    mean = (states * weights_WR1).sum(1, keepdim=True) / weights_WR1.sum(1, keepdim=True).clamp_min(1.0)
    unit = F.normalize(states - mean, dim=-1)
    similarity_WRR = unit @ unit.transpose(1, 2) / RELATION_TEMPERATURE
    logprobs: Tensor = similarity_WRR.masked_fill(left_out_WRR, torch.finfo(torch.float32).min).log_softmax(-1)
    return logprobs


def contrastive_nll(student_WRD: Tensor, teacher_WRD: Tensor, mask_WR: Tensor) -> Tensor:
    """InfoNCE of each position in nats, fp32 [W, R]: find the teacher's state of the same position in the run.

    The negatives are the other positions of the same run, so that the value does not depend on how windows are
    split into batches (van den Oord et al. 2018).
    """
    student = F.normalize(student_WRD.float(), dim=-1)
    teacher = F.normalize(teacher_WRD.float(), dim=-1)
    logits_WRR = student @ teacher.transpose(1, 2) / CONTRASTIVE_TEMPERATURE
    logits_WRR = logits_WRR.masked_fill(~mask_WR[:, None, :], torch.finfo(torch.float32).min)
    own = torch.arange(student.shape[1], device=student.device).expand(mask_WR.shape)
    nll_WR = F.cross_entropy(logits_WRR.transpose(1, 2), own, reduction="none")
    return nll_WR * mask_WR
