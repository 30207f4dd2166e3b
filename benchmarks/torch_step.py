"""The step of `supervised`, `mean_teacher` and `cutmix` in PyTorch, in eager mode.

What css_jax/methods/supervised.py and mean_teacher.py say, with the network of torch_network.py and
the views of torch_views.py. In memory images, maps and kernels have their channels last.
"""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from ml_collections import ConfigDict
from torch import Tensor

from benchmarks import against_torch, torch_network, torch_views
from css_jax import state

Draw = Callable[[str, str, int], Tensor]  # stream, purpose, count -> [B, count] in [0, 1)


class Training(NamedTuple):
    """What a step moves, in place.

    Attributes:
        student: path -> parameter or running statistic, in torch's order of axes.
        teacher: likewise.
        optimizer: over the student's parameters.
    """

    student: torch_network.Entries
    teacher: torch_network.Entries
    optimizer: torch.optim.SGD


class Targets(NamedTuple):
    """What a step trains on.

    Attributes:
        images: [B, 3, H, W] standardised, the labelled view.
        labels: [B, H, W] int64, -1: none.
        strong: [B', 3, H, W] standardised; None in a step of `supervised`.
        pseudo: [B', H, W] int64, -1 where the teacher is not sure; likewise.
    """

    images: Tensor
    labels: Tensor
    strong: Tensor | None = None
    pseudo: Tensor | None = None


def start(config: ConfigDict, first: state.TrainState) -> Training:
    """Return the training that begins with the arrays of our first state."""
    student, teacher = (
        {path: _tensor(x) for path, x in against_torch.in_torch_order(vars(network)).items()}
        for network in (first.student, first.teacher)
    )
    trained = [x.requires_grad_() for x in torch_network.parameters(student).values()]
    c = config.optimizer
    optimizer = torch.optim.SGD(
        trained, c.learning_rate, c.momentum, weight_decay=c.weight_decay, nesterov=c.nesterov
    )
    return Training(student, teacher, optimizer)


def step(training: Training, t: int, batch: Mapping, draw: Draw, config: ConfigDict) -> float:
    """Run one iteration of `css_jax.methods.mean_teacher`, or of `css_jax.methods.supervised`.

    Args:
        training: is moved.
        t: the step, from 0.
        batch: stream -> 'image' [B, H, W, 3] uint8 and 'label' [B, H, W] uint8, 255: void. Without
            a stream 'unlabelled' the step is one of `supervised`.
        draw: numbers for the views, see `torch_views`.
        config: finalised.

    Returns:
        The loss.
    """
    prepared = targets(training, batch, draw, config)
    loss = objective(training.student, prepared, config)
    training.optimizer.zero_grad()
    loss.backward()
    training.optimizer.param_groups[0]['lr'] = learning_rate(config, t)
    training.optimizer.step()
    share = max(1 / (t + 1), 1 - config.teacher.decay)  # the first update copies
    with torch.no_grad():
        for path, value in torch_network.parameters(training.teacher).items():
            value.lerp_(training.student[path], share)
    return loss.item()


@torch.no_grad()
def targets(training: Training, batch: Mapping, draw: Draw, config: ConfigDict) -> Targets:
    """Make the views; the teacher gives pseudo-labels, and its running statistics move."""
    augment, given = config.augment, batch['labelled']
    labels = torch.from_numpy(given['label']).long()
    labels = torch.where(labels == 255, -1, labels)
    images, labels = torch_views.photometric(
        functools.partial(draw, 'labelled'), levels(given['image']), [labels], augment
    )
    prepared = Targets(torch_views.normalise(images, config.data), labels)
    if 'unlabelled' in batch:
        weak = levels(batch['unlabelled']['image'])
        out = logits(training.teacher, torch_views.normalise(weak, config.data), config)
        indicator, pseudo = resized(out, weak).softmax(1).max(1)
        strong, pseudo, indicator = torch_views.strong(
            functools.partial(draw, 'unlabelled'), weak, pseudo, indicator, augment
        )
        pseudo = torch.where(indicator >= config.unsupervised.threshold, pseudo, -1)
        strong = torch_views.normalise(strong, config.data)
        prepared = prepared._replace(strong=strong, pseudo=pseudo)
    if 'unlabelled' not in batch or config.teacher.labelled_pass:
        logits(training.teacher, prepared.images, config)
    return prepared


def objective(student: torch_network.Entries, prepared: Targets, config: ConfigDict) -> Tensor:
    """Compute L_s, or L_s + L_u; the student's running statistics move."""
    p = prepared
    if p.strong is None:
        return _cross_entropy(logits(student, p.images, config), p.labels)
    if config.joint_pass:
        both = logits(student, torch.cat([p.images, p.strong]), config)
        out, out_u = both.split([len(p.images), len(p.strong)])
    else:
        out, out_u = logits(student, p.images, config), logits(student, p.strong, config)
    unsupervised = _cross_entropy(out_u, p.pseudo)
    return _cross_entropy(out, p.labels) + config.unsupervised.weight * unsupervised


def logits(
    entries: torch_network.Entries, images: Tensor, config: ConfigDict, train: bool = True
) -> Tensor:
    """Return the logits [B, C, h, w] of standardised images [B, 3, H, W]."""
    model, images = config.model, images.contiguous(memory_format=torch.channels_last)
    out = torch_network.forward(entries, images, model.backbone, model.output_stride, train)
    return out['logits']


def levels(images: np.ndarray) -> Tensor:
    """Turn uint8 [B, H, W, 3] into float32 [B, 3, H, W] in [0, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def resized(out: Tensor, like: Tensor) -> Tensor:
    """Resize logits [B, C, h, w] to the height and width of a tensor [..., H, W]."""
    return F.interpolate(out, like.shape[-2:], mode='bilinear', align_corners=True)


def learning_rate(config: ConfigDict, t: int) -> float:
    """Return the poly rate of step t: base (1 - t/T)^power, not under the floor, with warm-up."""
    c = config.optimizer
    rate = max(c.learning_rate * (1 - t / config.steps) ** c.power, c.floor)
    return rate * min((t + 1) / c.warmup_steps, 1) if c.warmup_steps else rate


def _tensor(array: np.ndarray) -> Tensor:
    """Return an array as a tensor, a kernel with its channels last."""
    found = torch.tensor(np.ascontiguousarray(array))
    return found.contiguous(memory_format=torch.channels_last) if array.ndim == 4 else found


def _cross_entropy(out: Tensor, labels: Tensor) -> Tensor:
    """Return the mean over the pixels that have a label [B, H, W]; 0 where none has."""
    total = F.cross_entropy(resized(out, labels), labels, ignore_index=-1, reduction='sum')
    return total / (labels >= 0).sum().clamp(min=1)
