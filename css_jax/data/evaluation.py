"""The batches of an evaluation: every image of a split once, in batches of static shapes.

XLA compiles a program for each shape. A protocol therefore says which images share one: all of
them (`whole`, `resized`, `random_crop`), or those of one size (`whole_exact`, `sliding`,
`sliding_cut`).
"""

from collections.abc import Iterator, Mapping, Sequence

import grain
import numpy as np

from css_jax.data import geometry, reading
from css_jax.data.sources import VOID, Source


def groups(
    source: Source,
    protocol: str,
    *,
    pad_to: tuple[int, int] = (0, 0),
    window: tuple[int, int] = (0, 0),
) -> dict[tuple[int, int], list[int]]:
    """Sort the images of a source by the height and width they are evaluated at.

    Args:
        source: the images.
        protocol: 'whole' and 'resized': all at one static size; 'random_crop': all at `window`;
            'whole_exact', 'sliding' and 'sliding_cut': each at its own size.
        pad_to: static size of 'whole' and 'resized'; (0, 0): the first image's.
        window: height and width of a random crop.

    Returns:
        (height, width) -> indices of the images, ascending; sizes in the order they come first.

    Raises:
        ValueError: there is no such protocol; an image is larger than the static size.
    """
    if protocol in ('whole', 'resized'):
        return {eval_size(source, pad_to): list(range(len(source)))}
    if protocol == 'random_crop':
        return {tuple(window): list(range(len(source)))}
    if protocol not in ('whole_exact', 'sliding', 'sliding_cut'):
        wanted = 'whole, whole_exact, resized, sliding, sliding_cut or random_crop'
        raise ValueError(f'eval.protocol: got {protocol!r}, expected {wanted}')
    found: dict[tuple[int, int], list[int]] = {}
    for index, (height, width) in enumerate(source.sizes.tolist()):
        found.setdefault((height, width), []).append(index)
    return found


def eval_size(source: Source, size: tuple[int, int]) -> tuple[int, int]:
    """Return the height and width that every image of a source is padded to.

    Args:
        source: the images.
        size: as configured; (0, 0): the first image's.

    Raises:
        ValueError: an image is larger; names the first, and the size that all fit in.
    """
    size = tuple(size) if any(size) else tuple(int(side) for side in source.sizes[0])
    too_large = np.flatnonzero((source.sizes > size).any(axis=1))
    if too_large.size:
        first, largest = too_large[0], tuple(source.sizes.max(axis=0).tolist())
        raise ValueError(
            f'eval.pad_to: got {size}, expected at least height, width {largest}, in which all '
            f'images fit ({source.ids[first]!r} has {tuple(source.sizes[first].tolist())}), or '
            'eval.protocol=whole_exact, which compiles once for each size'
        )
    return size


def batch_count(images: Mapping[tuple[int, int], Sequence[int]], batch_size: int) -> int:
    """Return the number of batches of `eval_batches`."""
    return sum(-(-len(indices) // batch_size) for indices in images.values())


def eval_batches(
    source: Source,
    images: Mapping[tuple[int, int], Sequence[int]],
    *,
    batch_size: int,
    crop: bool = False,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """Return images in batches of one size each, one size after the other.

    Images are padded right and bottom by reflection, labels by 255. The last batch of a size is
    filled up with blank images whose labels are all 255 and that have no class, so that they count
    nowhere and a size has one shape.

    Args:
        source: the images.
        images: (height, width) -> indices, see `groups`.
        batch_size: images in a batch, over all processes.
        crop: images larger than their (height, width) are cropped at random, each always alike:
            the place follows from the image's index alone, whatever the run's seed.
        process_index: which process asks; process p gets the p-th contiguous block of each batch.
        process_count: how many processes share a batch.

    Returns:
        Iterator of {'image': uint8 [B/P, height, width, 3], RGB, 'label': uint8 [B/P, height,
        width], 'classes': bool [B/P, C], those of the whole image, see
        `css_jax.data.sources.Source`, 'size': int32 [B/P, 2], height and width without padding};
        every process gets `batch_count` batches.

    Raises:
        ValueError: the batch cannot be shared out.
    """
    if not 0 <= process_index < process_count:
        wanted = f'0 to process_count - 1 = {process_count - 1}'
        raise ValueError(f'process_index: got {process_index}, expected {wanted}')
    if batch_size < 1 or batch_size % process_count:
        wanted = f'a positive multiple of the number of processes, {process_count}'
        raise ValueError(f'eval.batch_size: got {batch_size}, expected {wanted}')
    places: list[tuple[tuple[int, int], int | None]] = []  # size and index, None: a blank image
    for size, indices in images.items():
        blanks = -len(indices) % batch_size
        places += [(size, index) for index in [*indices, *[None] * blanks]]

    classes = source.classes

    def at(place: int) -> dict[str, np.ndarray]:
        size, index = places[place]
        if index is None:
            return {
                'image': np.zeros((*size, 3), np.uint8),
                'label': np.full(size, VOID, np.uint8),
                'classes': np.zeros(classes.shape[1], bool),
                'size': np.array(size, np.int32),
            }
        return {
            **example(source, index, size, crop),
            'classes': classes[index],
            'size': np.minimum(source.sizes[index], size).astype(np.int32),
        }

    blocks = grain.MapDataset.range(len(places)).map(at).batch(batch_size // process_count)
    blocks = blocks[process_index::process_count]
    return iter(blocks.to_iter_dataset(grain.ReadOptions(num_threads=4, prefetch_buffer_size=4)))


def example(
    source: Source, index: int, size: tuple[int, int] = (0, 0), crop: bool = False
) -> dict[str, np.ndarray]:
    """Decode one image and its label, padded as `eval_batches` says.

    Args:
        source: the images.
        index: of the image.
        size: least height and width.
        crop: cuts a larger image to `size` at a place that follows from `index` alone.

    Returns:
        {'image': uint8 [H, W, 3], RGB, 'label': uint8 [H, W]}.

    Raises:
        ValueError: see `css_jax.data.reading.read`.
    """
    record = reading.read(source, index)
    arrays = {
        'image': geometry.pad_to(record['image'], size, 'reflect'),
        'label': geometry.pad_to(record['label'], size, 'constant', VOID),
    }
    if not crop:
        return arrays
    return geometry.random_crop(arrays, np.random.default_rng(index), crop=size)
