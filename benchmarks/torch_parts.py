"""The parts of CSS's train step in PyTorch, vectorised: the same maths as css_jax/ops.

Native operations where PyTorch has one, and no loop over pixels or draws; loops are over images of
different sizes, as `interpolate` takes one size a call, and over L_c's classes, as ours are. Every
random number comes in as a uniform draw in [0, 1), so that both programs make the same batch.
Images are [B, 3, H, W], maps [B, H, W]; labels are int64 with -1 for ignore, as PyTorch's losses
take them. Every class has a prototype.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from ml_collections import ConfigDict
from torch import Tensor

IGNORE = -1


def pseudo_labels(
    logits: Tensor, representations: Tensor, prototypes: Tensor, size: Sequence[int], tau: float
) -> dict[str, Tensor]:
    """Mix labels and confidence [B, *size] of the teacher's outputs [B, channels, h, w]."""
    y_lgt, j_lgt = _most_likely(_enlarged(logits, size))
    rho = F.normalize(prototypes, dim=1)
    cosine = F.conv2d(representations, rho[:, :, None, None])
    cosine = cosine / torch.linalg.vector_norm(representations, dim=1, keepdim=True)
    y_rep, _ = _most_likely(_enlarged(cosine, size) / tau)
    return {'label': torch.where(y_lgt == y_rep, y_lgt, IGNORE), 'indicator': j_lgt}


def labelled_view(
    images: Tensor, labels: Tensor, draws: dict[str, Tensor], c: ConfigDict
) -> tuple[Tensor, Tensor]:
    """Jitter, blur, flip and normalisation of uint8 images and their labels (255: void)."""
    maps = {'label': torch.where(labels == 255, IGNORE, labels.long())}
    images, maps = _photometric(images.float() / 255, maps, draws, c)
    return images, maps['label']


def strong_view(
    images: Tensor, maps: dict[str, Tensor], draws: dict[str, Tensor], c: ConfigDict
) -> tuple:
    """Random scale and crop, CutMix with the next image, photometry."""
    images, maps = _resize_crop(images.float() / 255, maps, draws['resize'], c.augment.resize)
    box = _box(draws['mix'], *images.shape[2:])
    images = torch.where(box[:, None], images.roll(-1, 0), images)
    maps = {name: torch.where(box, x.roll(-1, 0), x) for name, x in maps.items()}
    return _photometric(images, maps, draws, c)


def pixel_losses(
    logits: Sequence[Tensor], label: Tensor, pseudo: Tensor, indicator: Tensor, delta: float
) -> Tensor:
    """L_s + L_u (Eq. 7 and the reference's weighted mean) of both views' logits at h x w."""
    size = label.shape[1:]
    supervised = F.cross_entropy(_enlarged(logits[0], size), label, ignore_index=IGNORE)
    losses = F.cross_entropy(
        _enlarged(logits[1], size), pseudo, ignore_index=IGNORE, reduction='none'
    )
    labelled = (pseudo != IGNORE).sum((1, 2)).clamp(min=1)
    weights = (indicator >= delta).sum((1, 2)) / labelled
    unsupervised = (weights[:, None, None] * losses).sum() / (losses > 0).sum().clamp(min=1)
    return supervised + unsupervised


def contrastive(
    representations: Sequence[Tensor],
    label: Tensor,
    pseudo: Tensor,
    indicator: Tensor,
    rho: Tensor,
    draws: Sequence[Tensor],
    c: ConfigDict,
) -> tuple[Tensor, Tensor]:
    """L_c (Eq. 9, bank estimator) and the new prototypes (Eq. 2, 3).

    Args:
        representations: [B, D, h, w] of both views.
        label: [B, H, W] of the labelled view.
        pseudo: [B, H, W] of the strong view.
        indicator: likewise.
        rho: prototypes [C, D] from before the step.
        draws: uniform [C, A] of the anchors and [C, K] of the bank.
        c: `config.contrastive`.
    """
    size = representations[0].shape[2:]
    pseudo = torch.where(indicator >= c.valid_threshold, pseudo, IGNORE)
    labels = torch.cat([_shrunk(label, size).flatten(), _shrunk(pseudo, size).flatten()])
    z = torch.cat([r.permute(0, 2, 3, 1).flatten(0, 2) for r in representations])  # [N, D]
    valid = labels >= 0
    with torch.no_grad():
        pixels = F.normalize(z, dim=1)
        cosine = pixels @ F.normalize(rho, dim=1).T / c.similarity_temperature
        own = torch.exp(-F.cross_entropy(cosine, labels, ignore_index=IGNORE, reduction='none'))
        hard = valid & (own < c.hard_threshold)
        member = (labels == torch.arange(len(rho))[:, None]).to(z.dtype)  # [C, N]
        counts = member.sum(1)
        mean = member @ z / counts.clamp(min=1)[:, None]
        moved = c.prototype_decay * rho + (1 - c.prototype_decay) * mean
        rho = torch.where((counts > 0)[:, None], moved, rho)

        # One sort by (class, hard before easy); a draw is then start + floor(u * count).
        group = torch.where(valid, 2 * labels + ~hard, 2 * len(rho)).int()
        order = torch.sort(group, stable=True).indices
        counts = torch.bincount(group, minlength=2 * len(rho) + 1)[:-1].view(-1, 2)
        total, hards = counts.sum(1), counts[:, 0]
        start = (total.cumsum(0) - total)[:, None]
        last = len(order) - 1  # where a class without pixels at the end would begin
        picked, banked = (
            order[(start + _drawn(u, count)).clamp(max=last)]
            for u, count in zip(draws, (hards, total), strict=True)
        )
        present = total > 0
        directions = F.normalize(rho, dim=1)
        allowed = present & ~torch.eye(len(rho), dtype=torch.bool)
        law = (directions @ directions.T / c.temperature).masked_fill(~allowed, -math.inf)
        law = law.log_softmax(1) + math.log(c.negatives / c.bank)
        bank = pixels[banked].flatten(0, 1)  # [C K, D]

    losses = 0.0
    for k in range(len(rho)):  # all at once is [C, A, C, K], several arrays of 110 MiB
        anchors = F.normalize(z[picked[k]], dim=1)
        positive = anchors @ directions[k] / c.temperature
        negatives = anchors @ bank.T / c.temperature
        negatives = (negatives.view(len(anchors), len(rho), -1) + law[k, None, :, None]).flatten(1)
        scores = torch.cat([positive[:, None], negatives], 1)
        mean = F.cross_entropy(scores, torch.zeros_like(picked[k]))
        losses = losses + mean * ((hards[k] > 0) & (present.sum() > 1))
    return losses / present.sum().clamp(min=1), rho


def sgd(parameters: Sequence[Tensor], c) -> torch.optim.SGD:
    """The optimiser of `css_jax.optimizer.sgd`, in PyTorch's one-kernel form."""
    return torch.optim.SGD(
        parameters,
        lr=c.learning_rate,
        momentum=c.momentum,
        nesterov=c.nesterov,
        weight_decay=c.weight_decay,
        fused=True,
    )


def follow(teacher: Sequence[Tensor], student: Sequence[Tensor], decay: float) -> None:
    """Moves the teacher's parameters towards the student's, in place."""
    with torch.no_grad():
        torch._foreach_lerp_(list(teacher), list(student), 1 - decay)


def _enlarged(x: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(x, tuple(size), mode='bilinear', align_corners=True)


def _most_likely(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Arg-max and largest softmax value of [B, C, H, W]."""
    indicator, label = scores.softmax(1).max(1)
    return label, indicator


def _shrunk(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Nearest as in torch, floor(i H / h), without a detour over floating point."""
    rows, columns = (torch.arange(n) * m // n for n, m in zip(size, maps.shape[1:], strict=True))
    return maps[:, rows[:, None], columns]


def _drawn(u: Tensor, counts: Tensor) -> Tensor:
    counts = counts[:, None]
    return torch.minimum((u * counts).long(), (counts - 1).clamp(min=0))


def _integer(u: Tensor, count: Tensor | int) -> Tensor:
    return torch.clamp((u * count).long(), max=count - 1)


def _between(u: Tensor, bounds: Sequence[float]) -> Tensor:
    return bounds[0] + (bounds[1] - bounds[0]) * u


def _resize_crop(images: Tensor, maps: dict, draws: Tensor, scale: Sequence[float]) -> tuple:
    """See `css_jax.ops.augment.resize_crop`; draws [B, 3]: scale, row, column."""
    scales = _between(draws[:, 0], scale)
    moved, moved_maps = [], {name: [] for name in maps}
    for i, image in enumerate(images):
        size, sources, inside = [], [], []
        for length, u in zip(image.shape[1:], draws[i, 1:], strict=True):
            side = max(1, int(length * scales[i]))
            place = _integer(u, max(side - length, 0) + 1) + torch.arange(length)
            period = max(2 * (side - 1), 1)
            sources.append(torch.minimum(place % period, period - place % period))
            inside.append(place < side)
            size.append(side)
        resized = F.interpolate(image[None], size, mode='bilinear', antialias=True)[0]
        moved.append(resized[:, sources[0]][:, :, sources[1]])
        rows, columns = (
            (2 * source + 1) * length // (2 * side)
            for source, length, side in zip(sources, image.shape[1:], size, strict=True)
        )
        known = inside[0][:, None] & inside[1]
        for name, x in maps.items():
            unknown = 0.0 if x.is_floating_point() else IGNORE
            moved_maps[name].append(torch.where(known, x[i][rows[:, None], columns], unknown))
    return torch.stack(moved), {name: torch.stack(x) for name, x in moved_maps.items()}


def _box(draws: Tensor, height: int, width: int) -> Tensor:
    """CutMix's boxes [B, H, W]; see `css_jax.ops.augment.mix`."""
    narrowest = width // 2 + 1
    box_width = narrowest + _integer(draws[:, 0], width - narrowest)
    box_height = torch.round(height * width / (2 * box_width)).long()
    spans = []
    for u, length, side in ((1, height, box_height), (2, width, box_width)):
        begin = _integer(draws[:, u], length - side + 1)[:, None]
        place = torch.arange(length)
        spans.append((place >= begin) & (place < begin + side[:, None]))
    return spans[0][:, :, None] & spans[1][:, None]


def _photometric(images: Tensor, maps: dict, draws: dict[str, Tensor], c: ConfigDict) -> tuple:
    images = _color(images, draws['color'], c.augment)
    images = _blur(images, draws['blur'], c.augment)
    flipped = draws['flip'][:, :, None] < c.augment.flip_prob  # [B, 1, 1]
    images = torch.where(flipped[..., None], images.flip(-1), images)
    maps = {name: torch.where(flipped, x.flip(-1), x) for name, x in maps.items()}
    mean, std = (torch.tensor(x)[:, None, None] for x in (c.data.mean, c.data.std))
    return (images - mean) / std, maps


def _color(images: Tensor, draws: Tensor, c) -> Tensor:
    """Brightness, contrast, saturation and hue in each image's own order; draws [B, 9].

    Each change is made by its own formula, as in torchvision, but on all images that are at it at
    once, and on no other.
    """
    jittered = draws[:, 0] < c.jitter_prob
    order = draws[:, 1:5].argsort(1)
    spread = torch.tensor([c.brightness, c.contrast, c.saturation, c.hue])
    amounts = spread * _between(draws[:, 5:], (-1, 1))
    result = images.clone()
    for place in range(4):
        for change in range(4):
            chosen = torch.nonzero(jittered & (order[:, place] == change))[:, 0]
            if len(chosen):
                amount = amounts[chosen, change][:, None, None, None]
                result[chosen] = _CHANGES[change](result[chosen], amount)
    return result


def _grey(images: Tensor) -> Tensor:
    red, green, blue = images.unbind(1)
    return (0.299 * red + 0.587 * green + 0.114 * blue)[:, None]


def _brightness(images: Tensor, amount: Tensor) -> Tensor:
    return (images * (1 + amount)).clamp_(0, 1)


def _contrast(images: Tensor, amount: Tensor) -> Tensor:
    mean = _grey(images).mean((2, 3), keepdim=True)
    return (images + amount * (images - mean)).clamp_(0, 1)


def _saturation(images: Tensor, amount: Tensor) -> Tensor:
    return (images + amount * (images - _grey(images))).clamp_(0, 1)


def _hue(images: Tensor, turns: Tensor) -> Tensor:
    red, green, blue = images.unbind(1)
    value, least = images.amax(1), images.amin(1)
    chroma = value - least
    scale = 1 / chroma.clamp(min=1e-30)
    sextant = torch.where(
        value == red,
        (green - blue) * scale,
        torch.where(value == green, 2 + (blue - red) * scale, 4 + (red - green) * scale),
    )
    shift = torch.tensor([5.0, 3.0, 1.0])[:, None, None]
    k = torch.remainder(sextant[:, None] + 6 * turns + shift, 6)
    return value[:, None] - chroma[:, None] * torch.minimum(k, 4 - k).clamp_(0, 1)


_CHANGES: Sequence[Callable] = (_brightness, _contrast, _saturation, _hue)


def _blur(images: Tensor, draws: Tensor, c) -> Tensor:
    """Gaussian of each image's own width, on the images that are blurred; draws [B, 2]."""
    chosen = torch.nonzero(draws[:, 0] < c.blur_prob)[:, 0]
    if not len(chosen):
        return images
    radius = math.ceil(3.5 * c.blur_sigma[1])
    deviation = _between(draws[chosen, 1:], c.blur_sigma)
    taps = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / deviation) ** 2)
    taps = (taps / taps.sum(1, keepdim=True)).repeat_interleave(3, 0)  # [b 3, taps]
    x = F.pad(images[chosen], (radius,) * 4, mode='reflect').flatten(0, 1)[None]
    x = F.conv2d(x, taps[:, None, :, None], groups=len(taps))
    x = F.conv2d(x, taps[:, None, None, :], groups=len(taps))
    result = images.clone()
    result[chosen] = x[0].unflatten(0, (len(chosen), 3))
    return result
