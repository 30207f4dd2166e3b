"""Which images of a folder are labelled, tagged or unlabelled, by masks and by labels.csv."""

from collections.abc import Iterable
from pathlib import Path

from data_prep.folder import paths, tags
from data_prep.folder.builder import TAGGED, UNLABELLED
from data_prep.folder.found import Found, Item
from data_prep.images import ENDINGS

_UNREAD = (  # endings of photographs of other kinds
    *('.heic', '.heif', '.avif', '.gif', '.jp2', '.jpe', '.jfif', '.tga', '.psd'),
    *('.raw', '.dng', '.cr2', '.cr3', '.nef', '.arw', '.orf', '.rw2'),
)


def choose(source: Path, found: Found) -> Found:
    """Leave the images that have labels of pixels or of images, or may have none.

    Raises:
        OSError: labels.csv cannot be read.
        ValueError: no image has a label, or labels.csv makes no sense.
    """
    if not found.items:
        raise ValueError(f'--source {source}: no images; expected {", ".join(ENDINGS)}')
    labels = tags.find(source, {item.image: item.key for item in found.items})
    if labels:
        joint = ' and' if ' with ' in found.layout else ' with'
        found = found._replace(layout=f'{found.layout}{joint} {tags.FILE}', labels=labels)
        # Masks of no image have a note each: they are a slip in names, not a folder without masks.
        if not found.notes and not any(item.mask for item in found.items):
            return _all_tagged(source, found)
    if not found.masks:
        raise ValueError(
            f'{source}: there is images/ but neither masks/ nor labels/ beside it, nor the file '
            f'{tags.FILE}'
        )
    return _with_masks(source, found)


def _all_tagged(source: Path, found: Found) -> Found:
    """Give every image the rows of labels.csv, but those that are unlabelled or left out."""
    rows, items = found.labels.rows, []
    for item in found.items:
        # What an unclear row is of would count as an image of background alone.
        if item.split and item.image not in found.labels.unsure:
            own = () if item.split == UNLABELLED else rows.get(item.image, ())
            items.append(item._replace(rows=own))
    tagged = [item for item in items if item.split != UNLABELLED]
    bare = [item.image.name for item in tagged if not item.rows]
    notes = []
    if bare:
        shown = ', '.join(bare[:5]) + (' ...' if len(bare) > 5 else '')
        notes.append(
            f'{len(bare)} images have no row in {tags.FILE} and count as background alone: {shown}'
        )
    notes += [*_unread(source), *_unused_rows(found, items)]
    table = found.table or tags.table(row for item in tagged for row in item.rows)
    return found._replace(items=tuple(items), notes=tuple(notes), table=table, masks=False)


def _with_masks(source: Path, found: Found) -> Found:
    """Make what has no mask unlabelled or tagged, and let go of the masks of what is unlabelled."""
    items, rows = [], found.labels.rows if found.labels else {}
    for item in found.items:
        if item.split and item.mask and item.split != UNLABELLED:
            items.append(item)
        elif item.split and item.image in rows:
            items.append(item._replace(split=TAGGED, mask=None, rows=rows[item.image]))
        elif item.split:
            items.append(item._replace(split=UNLABELLED, mask=None))
    unused = sum(i.mask is not None and i.split == UNLABELLED for i in found.items)
    notes = [*found.notes]
    for split in ('val', 'test'):
        bare = [item.image for item in found.items if item.split == split and not item.mask]
        for what in (UNLABELLED, TAGGED):
            images = [image for image in bare if (image in rows) == (what == TAGGED)]
            if images:
                notes.append(
                    f'{images[0]}{paths.more(images)}: of {split} and without a mask, so {what}'
                )
    notes += _unread(source)
    if unused:
        notes.append(f'{unused} masks are not used: their images are in no list of labelled ones')
    notes += _unused_rows(found, items)
    if not any(item.mask for item in items):
        raise ValueError(
            f'no image has a mask, such as {items[0].image}; expected masks with the names of '
            f'their images{"".join(f" ({note})" for note in found.notes[:1])}'
        )
    return found._replace(items=tuple(items), notes=tuple(notes))


def _unused_rows(found: Found, items: Iterable[Item]) -> list[str]:
    """Say how many images have rows of labels.csv that nobody needs, and why."""
    rows = found.labels.rows if found.labels else {}
    spare = [item for item in items if item.image in rows and not item.rows]
    masked = sum(item.mask is not None for item in spare)
    counts = {
        'have masks, which count': masked,
        'are unlabelled': len(spare) - masked,
        'are in no list': sum(item.image in rows for item in found.items if not item.split),
    }
    return [
        f'{count} images of {tags.FILE} {why}: their rows are not used'
        for why, count in counts.items()
        if count
    ]


def _unread(source: Path) -> list[str]:
    """Say which photographs are of other kinds than those that are read."""
    unread = [file for file in paths.walk(source) if file.suffix.lower() in _UNREAD]
    if not unread:
        return []
    return [f'{unread[0]}{paths.more(unread)}: not read; expected {", ".join(ENDINGS)}']
