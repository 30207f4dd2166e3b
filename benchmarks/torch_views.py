"""The views of css_jax/methods/views.py in PyTorch: one image after the other, native operations.

Images are [B, 3, H, W] float32 in [0, 1]. What is random comes from `draw(purpose, count)`, numbers
in [0, 1) as [B, count]: of the same numbers the views are ours but for rounding.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Draw = Callable[[str, int], Tensor]
GREY = (0.299, 0.587, 0.114)  # luma of RGB, ITU-R BT.601


def normalise(images: Tensor, data: Any) -> Tensor:
    """Standardise images by `config.data`."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (data.mean, data.std))
    return (images - mean) / std


def photometric(draw: Draw, images: Tensor, maps: list[Tensor], augment: Any) -> tuple[Tensor, ...]:
    """Jitter, blur and flip.

    Args:
        draw: see above.
        images: see above.
        maps: [B, H, W] each, flipped with the images.
        augment: `config.augment`.

    Returns:
        The images, then the maps.
    """
    images = torch.stack(
        [
            _blurred(_jittered(image, colour, augment), blur, augment)
            for image, colour, blur in zip(images, draw('color', 9), draw('blur', 2), strict=True)
        ]
    )
    flipped = draw('flip', 1)[:, :, None] < augment.flip_prob  # [B, 1, 1]
    images = torch.where(flipped[:, None], images.flip(-1), images)
    return images, *(torch.where(flipped, x.flip(-1), x) for x in maps)


def strong(
    draw: Draw, images: Tensor, labels: Tensor, indicator: Tensor, augment: Any
) -> tuple[Tensor, ...]:
    """Make the student's view of unlabelled images: resize and crop, CutMix or none, photometry.

    Args:
        draw: see above.
        images: the weak view.
        labels: [B, H, W] int64.
        indicator: [B, H, W] float32.
        augment: `config.augment`.

    Returns:
        Images, labels (-1: none) and indicator, of the shapes they came in.
    """
    every = zip(images, labels, indicator, draw('resize', 3).tolist(), strict=True)
    moved = [_resized(*one, augment.resize) for one in every]
    images, *maps = (torch.stack(parts) for parts in zip(*moved, strict=True))
    if augment.mixing == 'cutmix':
        inside = _boxes(draw('mix', 3), *images.shape[2:])
        images = torch.where(inside[:, None], images.roll(-1, 0), images)
        maps = [torch.where(inside, x.roll(-1, 0), x) for x in maps]
    return photometric(draw, images, maps, augment)


def _jittered(image: Tensor, drawn: Tensor, augment: Any) -> Tensor:
    """Change brightness, contrast, saturation and hue of an image in a random order."""
    if drawn[0] >= augment.jitter_prob:
        return image
    spread = (augment.brightness, augment.contrast, augment.saturation, augment.hue)
    for change in drawn[1:5].argsort().tolist():
        amount = spread[change] * (2 * float(drawn[5 + change]) - 1)
        if change == 3:
            image = _hue_turned(image, amount)
            continue
        grey = torch.einsum('chw,c->hw', image, torch.tensor(GREY))
        target = (torch.zeros(()), grey.mean(), grey)[change]
        image = torch.lerp(target.expand_as(image), image, 1 + amount).clamp(0, 1)
    return image


def _hue_turned(image: Tensor, turns: float) -> Tensor:
    """Turn the hue of an image by a share of the circle, at constant value and chroma (HSV)."""
    red, green, blue = image
    value, chroma = image.amax(0), image.amax(0) - image.amin(0)
    divisor = torch.where(chroma > 0, chroma, 1)
    of_green_or_blue = torch.where(value == green, 2 + (blue - red) / divisor,
                                   4 + (red - green) / divisor)  # fmt: skip
    sixths = torch.where(value == red, (green - blue) / divisor, of_green_or_blue) + 6 * turns
    places = (sixths + torch.tensor([5, 3, 1]).view(3, 1, 1)) % 6
    return value - chroma * torch.minimum(places, 4 - places).clamp(0, 1)


def _blurred(image: Tensor, drawn: Tensor, augment: Any) -> Tensor:
    """Blur an image with a Gaussian, cut at 3.5 of the largest deviation, borders reflected."""
    if drawn[0] >= augment.blur_prob:
        return image
    low, high = augment.blur_sigma
    radius = math.ceil(3.5 * high)
    distance = torch.arange(-radius, radius + 1)
    kernel = torch.exp(-0.5 * (distance / (low + (high - low) * drawn[1])) ** 2)
    kernel = (kernel / kernel.sum()).view(1, 1, -1)
    padded = F.pad(image[:, None], 4 * [radius], mode='reflect')
    return F.conv2d(F.conv2d(padded, kernel[..., None]), kernel[:, :, None])[:, 0]


def _resized(
    image: Tensor, label: Tensor, indicator: Tensor, drawn: Sequence[float], bounds: Sequence[float]
) -> tuple[Tensor, Tensor, Tensor]:
    """Resize an image and its maps by a random scale, then crop or pad them to their size."""
    size, (low, high) = image.shape[1:], bounds
    scaled = [max(int(side * (low + (high - low) * drawn[0])), 1) for side in size]
    sources, inside = [], []
    for side, new, start in zip(size, scaled, drawn[1:], strict=True):
        place = int(start * (max(new - side, 0) + 1)) + torch.arange(side)
        period = max(2 * (new - 1), 1)
        sources.append(torch.minimum(place % period, period - place % period))  # reflected
        inside.append(place < new)
    rows, columns = sources[0][:, None], sources[1]
    known = inside[0][:, None] & inside[1]
    image = F.interpolate(image[None], scaled, mode='bilinear', antialias=True)[0]
    maps = torch.stack([label.float(), indicator])[None]  # classes are exact in float32
    label, indicator = F.interpolate(maps, scaled, mode='nearest-exact')[0, :, rows, columns]
    label = torch.where(known, label.long(), -1)
    return image[:, rows, columns], label, torch.where(known, indicator, 0)


def _boxes(drawn: Tensor, height: int, width: int) -> Tensor:
    """Draw CutMix's boxes [B, H, W]: half the area, any width over W/2, anywhere inside."""
    inside = torch.zeros(len(drawn), height, width, dtype=torch.bool)
    for box, (wide, down, across) in zip(inside, drawn.tolist(), strict=True):
        box_width = width // 2 + 1 + int(wide * (width - width // 2 - 1))
        box_height = round(height * width / (2 * box_width))
        top = int(down * (height - box_height + 1))
        left = int(across * (width - box_width + 1))
        box[top : top + box_height, left : left + box_width] = True
    return inside
