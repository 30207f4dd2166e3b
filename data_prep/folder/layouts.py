"""The ways in which people lay out images and masks, recognised by what lies in a folder."""

import collections
import unicodedata
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path, PurePosixPath

from data_prep.folder import classes, labelled, labelme, paths
from data_prep.folder.builder import UNLABELLED
from data_prep.folder.found import Found, Item
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
EXPECTED = """\
images/ + masks/ (or labels/) with files of the same names, perhaps unlabelled/ beside; the same in
train/, val/ and test/, or with train.txt, val.txt, unlabelled.txt beside; VOC's JPEGImages/ +
SegmentationClass/; CVAT's "segmentation mask" export; Roboflow's semantic export (_classes.csv);
LabelMe's JSON files beside the images; labels.csv beside images/, lines of `image, class, ...` for
images without masks, or in place of all masks"""


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
            return labelled.choose(source, _ordered(found))
    inside = [path for path in source.iterdir() if not paths.hidden(path.name)]
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
            files, (masks, name) = paths.images(folder), _masks(place)
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
            items += [Item(split, key, file, None) for key, file in paths.images(place).items()]
            apart = f' + {place.name}/'
        for folder in _split_folders(place) if split else ():  # train/unlabelled
            if _split(folder) == UNLABELLED:
                items += [Item(UNLABELLED, k, f, None) for k, f in paths.images(folder).items()]
    if not names and (not alone or _labelme_files(source)):
        return None
    items, listed = _by_lists(items, source)
    where = f' in {", ".join(f"{name}/" for name in splits)}' if splits else ''
    where += f' with {", ".join(listed)}' if listed else ''
    masks = f' + {" or ".join(sorted(set(names)))}/' if names else ''
    layout = f'{IMAGES}/{masks}{apart}{where}'
    table = classes.beside(source) or _table_of_polygons([i.mask for i in items if i.mask])
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
    files, masks = paths.images(place / 'JPEGImages'), paths.images(place / 'SegmentationClass')
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
        masks = {paths.key_of(place, f)[: -len('_mask')]: f for f in every if f in are_masks}
        files = paths.keyed(place, [file for file in every if file not in are_masks])
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
    files = paths.images(source)
    items = []
    for key, file in files.items():
        folders = map(str.lower, PurePosixPath(key).parts[:-1])
        split = next((SPLITS[name] for name in folders if name in SPLITS), 'train')
        items.append(Item(split, key, file, jsons.pop(key, None)))
    if jsons:
        key, file = next(iter(jsons.items()))
        raise ValueError(
            f'{file}: there is no image {key} beside it{paths.more(jsons)}; expected one of '
            f'{", ".join(ENDINGS)}'
        )
    items, listed = _by_lists(items, source)
    table = classes.beside(source) or labelme.table(i.mask for i in items if i.mask)
    layout = "LabelMe's polygons" + (f' with {", ".join(listed)}' if listed else '')
    return Found(layout, tuple(items), table, ())


def _labelme_files(source: Path) -> dict[str, Path]:
    """Return key -> file of all JSON files with shapes."""
    jsons = [file for file in paths.walk(source) if file.suffix.lower() == '.json']
    return {paths.key_of(source, file): file for file in jsons if labelme.has_shapes(file)}


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
    found = {folder.name: _images_and_polygons(folder) for folder in folders}
    full = {name: files for name, files in found.items() if files}
    if len(full) > 1:
        raise ValueError(f'{place}: there are masks/ and labels/; expected one of them')
    if not found:
        return {}, ''
    name = next(iter(full or found))
    return found[name], name


def _images_and_polygons(folder: Path) -> dict[str, Path]:
    """Return key -> file of the masks in a folder: images, or LabelMe's files."""
    files = [f for f in paths.walk(folder) if is_image(f) or f.suffix.lower() == '.json']
    return paths.keyed(folder, files)


def _table_of_polygons(masks: list[Path]) -> classes.Table | None:
    """Return the table of masks that are LabelMe's files; None where there are none.

    Raises:
        ValueError: others are masks of numbers: nobody knows which are of which label.
    """
    polygons = [mask for mask in masks if mask.suffix.lower() == '.json']
    others = [mask for mask in masks if mask not in set(polygons)]
    if polygons and others:
        raise ValueError(
            f'{polygons[0]} has names of classes and {others[0]} their ids; expected a '
            'classes.txt beside images/, in the order of the ids'
        )
    return labelme.table(polygons) if polygons else None


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


def _ordered(found: Found) -> Found:
    return found._replace(items=tuple(sorted(found.items, key=lambda i: (i.split, i.key))))


def _unmatched(place: Path, masks: Mapping[str, Path], files: Collection[str]) -> list[str]:
    """Say which masks have no image; a slip in names loses labels silently otherwise."""
    alone = [file for key, file in masks.items() if key not in files]
    if not alone:
        return []
    return [f'{alone[0]}{paths.more(alone)}: a mask without an image of its name in {place.parent}']
