"""The strong view of an unlabelled batch and the photometry of a labelled one, on the device.

A view is a batch of images and a dict of maps of the same height and width that move with them:
integer maps are labels (ignore = -1), floating-point maps are indicators (nothing known = 0).
Every draw comes from the example's own key, folded with the purpose of the draw, so a batch is
augmented alike however it is spread over devices, and one [B] of keys serves a whole view.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from css_jax.ops import draws
from css_jax.ops.boxes import cutmix_box as cutmix_box  # of UniMatch
from css_jax.ops.boxes import paste as paste
from css_jax.ops.color import blur, color
from css_jax.ops.magnitudes import operation as operation  # a view's too, of CoSA

MIXING = ('cutmix', 'classmix', 'cutout', 'none')

Maps = dict[str, jax.Array]


@dataclass(frozen=True)
class Augment:
    """Parameters of the views, checked when they are built.

    Attributes:
        jitter_prob: probability that an example's colours are jittered.
        brightness: factors are drawn from [1 - brightness, 1 + brightness].
        contrast: likewise.
        saturation: likewise.
        hue: shifts are drawn from [-hue, hue], in turns.
        blur_prob: probability that an example is blurred.
        blur_sigma: range of the Gaussian's standard deviation, in pixels.
        flip_prob: probability that an example is mirrored.
        resize: range of the strong view's random scale.
        mixing: one of `MIXING`.

    Raises:
        ValueError: a value lies outside its range, or the mixing is unknown.
    """

    jitter_prob: float
    brightness: float
    contrast: float
    saturation: float
    hue: float
    blur_prob: float
    blur_sigma: Sequence[float]
    flip_prob: float
    resize: Sequence[float]
    mixing: str

    def __post_init__(self):
        limits = dict.fromkeys(('jitter_prob', 'blur_prob', 'flip_prob'), 1.0)
        limits |= {'brightness': 1.0, 'contrast': 1.0, 'saturation': 1.0, 'hue': 0.5}
        for name, high in limits.items():
            value = getattr(self, name)
            if not 0 <= value <= high:
                raise ValueError(f'{name} is {value}; expected a number from 0 to {high}')
        draws.check_range('blur_sigma', self.blur_sigma)
        draws.check_range('resize', self.resize)
        _check_mixing(self.mixing)


def to_float(images: jax.Array) -> jax.Array:
    """Map uint8 images to float32 in [0, 1]."""
    return images.astype(jnp.float32) / 255


def normalise(images: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """Standardise images [B, H, W, 3] in [0, 1] by the mean and deviation of each channel."""
    return (images - jnp.asarray(mean, images.dtype)) / jnp.asarray(std, images.dtype)


def strong_view(
    keys: jax.Array,
    images: jax.Array,
    maps: Maps,
    augment: Augment,
    *,
    label: str,
    num_classes: int,
    next_example: Callable,
    mean: Sequence[float],
    std: Sequence[float],
) -> tuple[jax.Array, Maps]:
    """Make the student's view of an unlabelled batch: resize and crop, mixing, photometry.

    The paper leaves this view to its predecessors; order and laws are the reference program's.

    Args:
        keys: [B] typed keys, one an example.
        images: [B, H, W, 3] float32 in [0, 1], the weak view before normalisation.
        maps: pseudo-labels and indicators of the weak view, each [B, H, W].
        augment: the parameters.
        label: name of the map whose classes ClassMix divides.
        num_classes: number of classes of that map.
        next_example: gives a pytree of [B, ...] arrays shifted by one example of the global batch,
            wrapping; on one device `lambda t: jax.tree.map(lambda x: jnp.roll(x, -1, 0), t)`.
        mean: mean of the pixels' RGB in [0, 1].
        std: their standard deviation.

    Returns:
        The standardised images [B, H, W, 3] and the maps [B, H, W]. CutOut's box is 0 in both
        images and indicators and ignore in labels, whatever the colours did.

    Raises:
        ValueError: the shapes do not go together, or `label` is not among the maps.
    """
    images, maps = resize_crop(keys, images, maps, augment.resize)
    if augment.mixing == 'cutout':  # the box must be 0 after the photometry: it travels as a map
        maps = maps | {'_kept': jnp.ones(images.shape[:3])}
    images, maps = mix(
        keys,
        images,
        maps,
        next_example,
        kind=augment.mixing,
        label=label,
        num_classes=num_classes,
        fill=mean,
    )
    images, maps = photometric(keys, images, maps, augment, mean=mean, std=std)
    if augment.mixing == 'cutout':
        images *= maps.pop('_kept')[..., None]
    return images, maps


def photometric(
    keys: jax.Array,
    images: jax.Array,
    maps: Maps,
    augment: Augment,
    *,
    mean: Sequence[float],
    std: Sequence[float],
) -> tuple[jax.Array, Maps]:
    """Jitter, blurs, flips and standardises: all that happens on the device to a labelled batch.

    Args:
        keys: [B] typed keys, one an example.
        images: [B, H, W, 3] float32 in [0, 1].
        maps: maps [B, H, W] that are flipped with the images.
        augment: the parameters.
        mean: mean of the pixels' RGB in [0, 1].
        std: their standard deviation.

    Returns:
        The standardised images and the maps, in the shapes they came in.

    Raises:
        ValueError: the shapes do not go together.
    """
    if augment.jitter_prob > 0:  # else its operations would stay in the program, for nothing
        images = color(
            keys,
            images,
            jitter_prob=augment.jitter_prob,
            brightness=augment.brightness,
            contrast=augment.contrast,
            saturation=augment.saturation,
            hue=augment.hue,
        )
    if augment.blur_prob > 0:
        images = blur(keys, images, prob=augment.blur_prob, sigma=augment.blur_sigma)
    images, maps = flip(keys, images, maps, prob=augment.flip_prob)
    return normalise(images, mean, std), maps


def resize_crop(
    keys: jax.Array, images: jax.Array, maps: Maps, scale_range: Sequence[float]
) -> tuple[jax.Array, Maps]:
    """Resize each example by its own random scale, then pads or crops it back to its size.

    Images are resized bilinearly, antialiased when they shrink (the triangle filter of PIL and of
    torchvision's antialias=True); maps by the nearest pixel centre. What is missing is padded at
    the right and bottom only: images by reflection, repeatedly where needed, integer maps with -1,
    floating-point maps with 0.

    Args:
        keys: [B] typed keys, one an example.
        images: [B, H, W, 3] float32.
        maps: maps [B, H, W], signed integer or floating point.
        scale_range: the scale s is uniform in it; the size becomes (int(H s), int(W s)).

    Returns:
        The images and maps, in the shapes they came in.

    Raises:
        ValueError: the range is not 0 < low <= high, or the shapes do not go together.
    """
    draws.check_range('scale_range', scale_range)
    _check_view(keys, images, maps)
    if scale_range[0] == scale_range[1] == 1:
        return images, maps
    drawn = draws.uniform(keys, 'resize', 3)
    scale = draws.between(drawn[:, 0], scale_range)
    rows, rows_inside, down = _resample(images.shape[1], scale, drawn[:, 1])
    columns, columns_inside, across = _resample(images.shape[2], scale, drawn[:, 2])
    images = jnp.einsum('boh,bhwc->bowc', down, images, precision='highest')
    images = jnp.einsum('bpw,bowc->bopc', across, images, precision='highest')

    inside = rows_inside[:, :, None] & columns_inside[:, None, :]
    pick = jax.vmap(lambda values, i, j: values[i[:, None], j])
    maps = {
        name: jnp.where(inside, pick(values, rows, columns), _unknown(name, values))
        for name, values in maps.items()
    }
    return images, maps


def mix(
    keys: jax.Array,
    images: jax.Array,
    maps: Maps,
    next_example: Callable,
    *,
    kind: str,
    label: str,
    num_classes: int,
    fill: Sequence[float],
) -> tuple[jax.Array, Maps]:
    """Replace a part of each example by the same part of the next one, or by nothing.

    'cutmix' replaces a box of half the area, 'classmix' the pixels of all but half (rounded down)
    of the values in the example's own map `label`, where ignore counts as a value, 'cutout' erases
    such a box, 'none' leaves everything as it is. (French et al. 2020; Olsson et al. 2021.)

    Args:
        keys: [B] typed keys, one an example.
        images: [B, H, W, 3].
        maps: maps [B, H, W], signed integer or floating point.
        next_example: gives a pytree of [B, ...] arrays shifted by one example; see `strong_view`.
        kind: one of `MIXING`.
        label: name of the map whose values ClassMix divides; they are -1 ... num_classes - 1.
        num_classes: number of classes of that map.
        fill: RGB in CutOut's box; its labels become -1, its indicators 0.

    Returns:
        The images and maps, in the shapes they came in.

    Raises:
        ValueError: the kind is unknown, the shapes do not go together, the images are too small
            for a box, or ClassMix's `label` is not among the maps.
    """
    _check_mixing(kind)
    _check_view(keys, images, maps)
    if kind == 'none':
        return images, maps
    if kind == 'classmix' and label not in maps:
        raise ValueError(f'label is {label!r}; expected the name of a map: {sorted(maps)}')
    if kind == 'cutout':
        other_images = jnp.asarray(fill, images.dtype)
        other_maps = {name: _unknown(name, values) for name, values in maps.items()}
    else:
        other_images, other_maps = next_example((images, maps))
    if kind == 'classmix':
        replaced = ~_half_of_classes(keys, maps[label], num_classes)
    else:
        replaced = _box(keys, *images.shape[1:3])
    images = jnp.where(replaced[..., None], other_images, images)
    return images, {name: jnp.where(replaced, other_maps[name], maps[name]) for name in maps}


def flip(keys: jax.Array, images: jax.Array, maps: Maps, *, prob: float) -> tuple[jax.Array, Maps]:
    """Mirror images [B, H, W, C] and maps [B, H, W] left to right with probability `prob`.

    Raises:
        ValueError: the shapes do not go together.
    """
    _check_view(keys, images, maps)
    flipped = draws.uniform(keys, 'flip', 1)[:, :, None] < prob  # [B, 1, 1]
    images = jnp.where(flipped[..., None], images[:, :, ::-1], images)
    return images, {name: jnp.where(flipped, x[:, :, ::-1], x) for name, x in maps.items()}


def _resample(
    length: int, scale: jax.Array, draw: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Resize, pads or crops one axis back to its length.

    Returns:
        The nearest input pixel of each output pixel [B, length], whether the output pixel lies on
        the image rather than its padding [B, length], and the bilinear weights
        [B, length out, length in].
    """
    size = jnp.maximum(jnp.floor(length * scale).astype(jnp.int32), 1)[:, None]
    offset = draws.integer(draw[:, None], jnp.maximum(size - length, 0) + 1)
    place = offset + jnp.arange(length)  # in the resized axis, padding included
    period = jnp.maximum(2 * (size - 1), 1)
    source = jnp.minimum(place % period, period - place % period)  # reflected: 0 ... size - 1
    # The centre (i + 0.5) in / out as a fraction of integers: its floor is exact.
    numerator, denominator = (2 * source + 1) * length, 2 * size
    nearest = numerator // denominator

    distance = jnp.abs(jnp.arange(length) + 0.5 - (numerator / denominator)[:, :, None])
    support = jnp.maximum(length / size, 1)[:, :, None]  # wider when shrinking: antialiased
    weights = jnp.maximum(1 - distance / support, 0)
    return nearest, place < size, weights / weights.sum(-1, keepdims=True)


def _box(keys: jax.Array, height: int, width: int) -> jax.Array:
    """Draw CutMix's boxes [B, H, W]: half the area, any width over W/2, anywhere inside."""
    if height < 2 or width < 3:
        raise ValueError(f'images are {height} x {width}; a box needs at least 2 x 3 pixels')
    drawn = draws.uniform(keys, 'mix', 3)
    narrowest = width // 2 + 1
    box_width = narrowest + draws.integer(drawn[:, 0], width - narrowest)
    box_height = jnp.round(height * width / (2 * box_width)).astype(jnp.int32)
    top = draws.integer(drawn[:, 1], height - box_height + 1)[:, None]
    left = draws.integer(drawn[:, 2], width - box_width + 1)[:, None]
    row, column = jnp.arange(height), jnp.arange(width)
    rows = (row >= top) & (row < top + box_height[:, None])
    columns = (column >= left) & (column < left + box_width[:, None])
    return rows[:, :, None] & columns[:, None, :]


def _half_of_classes(keys: jax.Array, labels: jax.Array, num_classes: int) -> jax.Array:
    """Mark the pixels [B, H, W] of half the values in each label map, drawn uniformly."""
    present = (labels[..., None] == jnp.arange(-1, num_classes)).any((1, 2))  # [B, C + 1]
    drawn = jnp.where(present, draws.uniform(keys, 'mix', num_classes + 1), 2.0)  # absent ones last
    rank = jnp.argsort(jnp.argsort(drawn, axis=1), axis=1)
    chosen = rank < present.sum(1, keepdims=True) // 2
    return jax.vmap(lambda table, index: table[index])(chosen, labels + 1)


def _unknown(name: str, values: jax.Array) -> int | float:
    """Return what a map holds where nothing is known: ignore for labels, 0 for indicators."""
    if jnp.issubdtype(values.dtype, jnp.signedinteger):
        return -1
    if jnp.issubdtype(values.dtype, jnp.floating):
        return 0.0
    raise ValueError(f'map {name!r} is {values.dtype}; expected signed integer or floating point')


def _check_mixing(kind: str) -> None:
    if kind not in MIXING:
        raise ValueError(f'mixing is {kind!r}; expected one of {", ".join(MIXING)}')


def _check_view(keys: jax.Array, images: jax.Array, maps: Maps) -> None:
    if images.ndim != 4 or keys.shape != images.shape[:1]:
        raise ValueError(
            f'images are {images.shape} and keys {keys.shape}; expected [B, H, W, 3] and [B]'
        )
    for name, values in maps.items():
        if values.shape != images.shape[:3]:
            raise ValueError(f'map {name!r} is {values.shape}; expected {images.shape[:3]}')
