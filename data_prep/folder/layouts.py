"""The ways in which people lay out images and masks, recognised by what lies in a folder."""

import collections
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from data_prep.folder import classes, labelme, tags
from data_prep.folder.builder import TAGGED, UNLABELLED
from data_prep.images import ENDINGS, is_image
from data_prep.splits import lists

SPLITS = {  # name of a folder or a list -> split
    'train': 'train',
    'val': 'val',
    'valid': 'val',
    'validation': 'val',
    'test': 'test',
    'unlabelled': UNLABELLED,
    'unlabeled': UNLABELLED,
}
IMAGES, MASKS = 'images', ('masks', 'labels')
_UNREAD = (  # endings of photographs of other kinds
    *('.heic', '.heif', '.avif', '.gif', '.jp2', '.jpe', '.jfif', '.tga', '.psd'),
    *('.raw', '.dng', '.cr2', '.cr3', '.nef', '.arw', '.orf', '.rw2'),
)
_MACOS = '__MACOSX'  # in its archives, beside what was packed
EXPECTED = """\
images/ + masks/ (or labels/) with files of the same names, perhaps unlabelled/ beside; the same in
train/, val/ and test/, or with train.txt, val.txt, unlabelled.txt beside; VOC's JPEGImages/ +
SegmentationClass/; CVAT's "segmentation mask" export; Roboflow's semantic export (_classes.csv);
LabelMe's JSON files beside the images; labels.csv beside images/, lines of `image, class, ...` for
images without masks, or in place of all masks"""


class Item(NamedTuple):
    """An image and what is known of it.

    Attributes:
        split: one of the values of SPLITS, or TAGGED; '': left out, as no list has it.
        key: its path in the folder of images, without ending: 'site A/0001'.
        image: its file.
        mask: file of its mask, LabelMe's JSON, or None.
        rows: of labels.csv, where they tell its classes.
    """

    split: str
    key: str
    image: Path
    mask: Path | None
    rows: tuple[tags.Row, ...] = ()


class Found(NamedTuple):
    """What a folder has.

    Attributes:
        layout: its name, for the first line of output.
        items: every image; sorted by split and key.
        table: of the classes, where there is one.
        notes: what the user should know, a sentence each.
        labels: what labels.csv has, where there is one.
        masks: whether there are any or a folder of them; else labels.csv is in their place.
    """

    layout: str
    items: tuple[Item, ...]
    table: classes.Table | None
    notes: tuple[str, ...]
    labels: tags.Labels | None = None
    masks: bool = True

    def has_tags(self, split: str) -> bool:
        """Tell whether the images of a split have tags."""
        return split == TAGGED or (split != UNLABELLED and not self.masks)


def find(source: Path) -> Found:
    """Recognise a folder's layout.

    Args:
        source: the folder, or one that holds nothing but it.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it has no layout that is known, or something in it contradicts itself.
    """
    if not source.is_dir():
        what = 'this is a file' if source.exists() else 'there is no such folder'
        raise FileNotFoundError(f'--source {source}: {what}; expected a folder of images and masks')
    for layout in (_roboflow, _voc, _pairs, _labelme):
        found = layout(source)
        if found is not None:
            return _with_labels(source, _ordered(found))
    inside = [path for path in source.iterdir() if not _hidden(path.name)]
    folders = [path for path in inside if path.is_dir()]
    if len(folders) == 1 and folders[0].name.lower() not in (IMAGES, *SPLITS, *MASKS):
        return find(folders[0])  # what unpacking an archive leaves
    there = ', '.join(sorted(path.name for path in inside)[:8]) or 'nothing'
    raise ValueError(f'--source {source}: there is {there}; expected one of\n{EXPECTED}')


def _pairs(source: Path) -> Found | None:
    """Find images/ + masks/, here or in folders named as splits, and unlabelled/."""
    items, notes, names, splits, apart, alone = [], [], [], [], '', []
    places = [(source, None), *((folder, _split(folder)) for folder in _split_folders(source))]
    for place, split in places:
        if folder := _folder(place, IMAGES):
            files, (masks, name) = _files(folder), _masks(place)
            names += [name.lower()] if name else []
            alone += [] if name else [place]
            splits += [place.name] if split else _inner(files)
            masks = {_one_name(key): file for key, file in masks.items()}
            for key, file in files.items():
                # images/train, images/val: splits may also be the inner folders.
                own = split or SPLITS.get(_one_name(key).partition('/')[0], 'train')
                items.append(Item(own, key, file, masks.get(_one_name(key))))
            notes += _unmatched(place / name, masks, {_one_name(key) for key in files})
        elif split == UNLABELLED:
            items += [Item(split, key, file, None) for key, file in _files(place).items()]
            apart = f' + {place.name}/'
        for folder in _split_folders(place) if split else ():  # train/unlabelled
            if _split(folder) == UNLABELLED:
                items += [Item(UNLABELLED, k, f, None) for k, f in _files(folder).items()]
    if not names and (not alone or _labelme_files(source)):
        return None
    items, listed = _by_lists(items, source)
    where = f' in {", ".join(f"{name}/" for name in splits)}' if splits else ''
    where += f' with {", ".join(listed)}' if listed else ''
    masks = f' + {" or ".join(sorted(set(names)))}/' if names else ''
    layout = f'{IMAGES}/{masks}{apart}{where}'
    table = classes.beside(source)
    return Found(layout, tuple(items), table, tuple(notes), masks=bool(names))


def _voc(source: Path) -> Found | None:
    """Find VOC's folders, or CVAT's export, which are these with a labelmap.txt."""
    for pattern in ('', '*/', '*/*/'):  # VOCdevkit/VOC2012
        places = sorted(p.parent for p in source.glob(f'{pattern}SegmentationClass') if p.is_dir())
        if places:
            break
    else:
        return None
    place, *others = places
    if others:
        raise ValueError(f'{place} and {others[0]} are datasets of their own; expected one of them')
    cvat = (place / 'labelmap.txt').is_file()
    name = "CVAT's segmentation masks" if cvat else "VOC's folders"
    if not (place / 'JPEGImages').is_dir():
        hint = ' (export again with its images)' if cvat else ''
        raise ValueError(f'{place}: there is SegmentationClass but no JPEGImages{hint}')
    files, masks = _files(place / 'JPEGImages'), _files(place / 'SegmentationClass')
    items = [Item('train', key, file, masks.get(key)) for key, file in files.items()]
    items, listed = _by_lists(items, place / 'ImageSets' / 'Segmentation')
    layout = f'{name} with {", ".join(listed)}' if listed else name
    notes = _unmatched(place / 'SegmentationClass', masks, files)
    return Found(layout, tuple(items), classes.beside(place), tuple(notes))


def _roboflow(source: Path) -> Found | None:
    """Find NAME.jpg with NAME_mask.png beside it, and _classes.csv, here or in split folders."""
    items, tables, notes = [], {}, []
    for place in [source, *_split_folders(source)]:
        if not (place / classes.ROBOFLOW).is_file():
            continue
        split = 'train' if place == source else _split(place)
        tables[place] = classes.read_roboflow(place / classes.ROBOFLOW)
        every = [file for file in sorted(place.iterdir()) if is_image(file)]
        are_masks = {f for f in every if f.name.lower().endswith('_mask.png')}
        masks = {_key(place, f)[: -len('_mask')]: f for f in every if f in are_masks}
        files = _keyed(place, [file for file in every if file not in are_masks])
        items += [Item(split, key, file, masks.get(key)) for key, file in files.items()]
        notes += _unmatched(place, masks, files)
    if not tables:
        return None
    (first, table), *others = tables.items()
    for place, other in others:
        if other != table:
            raise ValueError(
                f'{place / classes.ROBOFLOW} and {first / classes.ROBOFLOW} differ; expected one '
                'table of classes'
            )
    return Found("Roboflow's semantic masks", tuple(items), table, tuple(notes))


def _labelme(source: Path) -> Found | None:
    """Find LabelMe's JSON files beside the images."""
    jsons = _labelme_files(source)
    if not jsons:
        return None
    files = _files(source)
    items = []
    for key, file in files.items():
        folders = map(str.lower, PurePosixPath(key).parts[:-1])
        split = next((SPLITS[name] for name in folders if name in SPLITS), 'train')
        items.append(Item(split, key, file, jsons.pop(key, None)))
    if jsons:
        key, file = next(iter(jsons.items()))
        raise ValueError(
            f'{file}: there is no image {key} beside it{_more(jsons)}; expected one of '
            f'{", ".join(ENDINGS)}'
        )
    items, listed = _by_lists(items, source)
    table = classes.beside(source) or labelme.table(i.mask for i in items if i.mask)
    layout = "LabelMe's polygons" + (f' with {", ".join(listed)}' if listed else '')
    return Found(layout, tuple(items), table, ())


def _labelme_files(source: Path) -> dict[str, Path]:
    """Return key -> file of all JSON files with shapes."""
    jsons = [file for file in _walk(source) if file.suffix.lower() == '.json']
    return {_key(source, file): file for file in jsons if labelme.has_shapes(file)}


def _inner(files: Iterable[str]) -> list[str]:
    """Return the folders named as splits that images/ has, of the images' keys."""
    folders = {key.partition('/')[0] for key in files if '/' in key}
    return [f'{IMAGES}/{folder}' for folder in sorted(folders) if folder.lower() in SPLITS]


def _one_name(key: str) -> str:
    """Return a key with the split's name for its folder: images/validation has masks/val."""
    folder, slash, rest = key.partition('/')
    return SPLITS.get(folder.lower(), folder) + slash + rest if slash else key


def _split_folders(source: Path) -> list[Path]:
    found = {name: _folder(source, name) for name in SPLITS}
    return [folder for folder in found.values() if folder]


def _split(folder: Path) -> str:
    return SPLITS[folder.name.lower()]


def _folder(place: Path, name: str) -> Path | None:
    """Return the folder of a name in a place, in whatever letters; None where there is none."""
    found = (path for path in sorted(place.iterdir()) if path.name.lower() == name)
    return next((path for path in found if path.is_dir()), None)


def _masks(place: Path) -> tuple[dict[str, Path], str]:
    """Return the masks beside images/ by key, and the folder's name, '' where there is none."""
    folders = [folder for name in MASKS if (folder := _folder(place, name))]
    found = {folder.name: _files(folder) for folder in folders}
    full = {name: files for name, files in found.items() if files}
    if len(full) > 1:
        raise ValueError(f'{place}: there are masks/ and labels/; expected one of them')
    if not found:
        return {}, ''
    name = next(iter(full or found))
    return found[name], name


def _by_lists(items: list[Item], folder: Path) -> tuple[list[Item], list[str]]:
    """Assign splits by the list files of a folder, where there are any.

    What no list names is unlabelled; with a list of the unlabelled images it is left out; without
    a list of train it is that. In a split's folder it stays in that split.

    Returns:
        The items, and the lists' file names.
    """
    texts = sorted(folder.glob('*.[Tt][Xx][Tt]'))
    found = {file: SPLITS[name] for file in texts if (name := file.stem.lower()) in SPLITS}
    if not found or not items:
        return items, []
    by_name = collections.defaultdict(list)
    for item in items:
        for name in {item.key, PurePosixPath(item.key).name}:
            for form in {name, unicodedata.normalize('NFD', name)}:
                by_name[form].append(item)
    chosen: dict[Path, tuple[str, Path]] = {}  # image -> split, list
    for file, split in found.items():
        for name, line in lists.parse(file.read_bytes(), str(file), known=by_name).items():
            if len(by_name.get(name, [])) != 1:
                count = len(by_name.get(name, []))
                raise ValueError(
                    f'{file}: line {line} names {name!r}, of which there are {count} images'
                )
            image = by_name[name][0].image
            if image in chosen:
                raise ValueError(f'{file}: line {line} names {name!r}, as {chosen[image][1]} does')
            chosen[image] = split, file
    rest = '' if UNLABELLED in found.values() else UNLABELLED
    rest = rest if 'train' in found.values() else 'train'
    splits = [
        chosen[i.image][0] if i.image in chosen else rest if i.split == 'train' else i.split
        for i in items
    ]
    divided = [i._replace(split=s) for i, s in zip(items, splits, strict=True)]
    return divided, [file.name for file in found]


def _with_labels(source: Path, found: Found) -> Found:
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
            f'{source}: there is {IMAGES}/ but neither masks/ nor labels/ beside it, nor the file '
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
                    f'{images[0]}{_more(images)}: of {split} and without a mask, so {what}'
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
    unread = [file for file in _walk(source) if file.suffix.lower() in _UNREAD]
    if not unread:
        return []
    return [f'{unread[0]}{_more(unread)}: not read; expected {", ".join(ENDINGS)}']


def _ordered(found: Found) -> Found:
    return found._replace(items=tuple(sorted(found.items, key=lambda i: (i.split, i.key))))


def _files(folder: Path) -> dict[str, Path]:
    """Return key -> image file of all images in a folder and those in it."""
    return _keyed(folder, [file for file in _walk(folder) if is_image(file)])


def _keyed(folder: Path, files: Iterable[Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for file in files:
        key = _key(folder, file)
        if key in found:
            raise ValueError(
                f'{found[key]} and {file.name} have one stem: which belongs to the mask? Expected '
                'one of them, or another name'
            )
        found[key] = file
    return found


def _walk(folder: Path) -> Iterator[Path]:
    for file in sorted(folder.rglob('*')):
        hidden = any(map(_hidden, file.relative_to(folder).parts))
        if file.is_file() and not hidden:
            yield file


def _hidden(name: str) -> bool:
    return name.startswith('.') or name == _MACOS


def _key(folder: Path, file: Path) -> str:
    """Return a file's path in a folder without ending; letters with accents in one form."""
    key = file.relative_to(folder).with_suffix('').as_posix()
    if not key.isprintable() and any('\ud800' <= letter <= '\udfff' for letter in key):
        raise ValueError(f'{str(file)!a}: a name that is no UTF-8; expected another')
    return unicodedata.normalize('NFC', key)


def _unmatched(place: Path, masks: Mapping[str, Path], files: Collection[str]) -> list[str]:
    """Say which masks have no image; a slip in names loses labels silently otherwise."""
    alone = [file for key, file in masks.items() if key not in files]
    if not alone:
        return []
    return [f'{alone[0]}{_more(alone)}: a mask without an image of its name in {place.parent}']


def _more(found: Collection) -> str:
    return f' and {len(found) - 1} more' if len(found) > 1 else ''
