"""The field's split lists: where they are published, how a line names an image, what must hold.

The lists come in two layouts, which differ in more than the names of folders:

*u2pl*: those of U2PL (https://github.com/Haochen-Wang409/U2PL, folder data/splits), which the
papers that followed it compare on: pascal/N for 92 to 1,464 are PASCAL VOC's classic protocol, for
662 to 5,291 the blender one. The latter take VOC's own 1,464 finely annotated images first: 662 and
1,323 have no other, 2,646 and 5,291 have all of them.

*unimatch*: those of UniMatch (https://github.com/LiheYoung/UniMatch, folder splits) and of UniMatch
V2, which has them all and ADE20K's. Its classic lists are U2PL's. Its blender ones, pascal/1_16,
1_8 and 1_4, are random draws of 662, 1,323 and 2,646 from the 10,582, whose labels are coarser: 93
of the 662 are finely annotated. iMAS has its numbers on the same images. Its lists of Cityscapes,
cityscapes/1_16 to 1_2, have as many images as U2PL's and other ones. ade20k/1_64 to 1_4 and
coco/1_512 to 1_32 (of the 2017 release) are UniMatch's alone.
"""

import re
from collections.abc import Collection, Mapping
from pathlib import Path

# Each list at the commit at which it was read: OWNER/REPOSITORY/COMMIT/FOLDER -> lists. The page is
# https://github.com/OWNER/REPOSITORY/blob/COMMIT/FOLDER/LIST. The two of U2PL's cityscapes/372 have
# a commit each, as they name other images at the first one; 'partitions' is an earlier name of
# UniMatch's folder.
URL = 'https://raw.githubusercontent.com/{place}/{name}'
_U2PL = {
    'Haochen-Wang409/U2PL/05a8b1b52149b8755f8091d3509d58ab1403f257/data/splits': (
        'pascal/92/unlabeled.txt',
        'pascal/183/labeled.txt',
        'pascal/183/unlabeled.txt',
        'pascal/366/labeled.txt',
        'pascal/732/unlabeled.txt',
        'pascal/1464/labeled.txt',
        'pascal/1464/unlabeled.txt',
        'pascal/662/unlabeled.txt',
        'pascal/2646/unlabeled.txt',
        'pascal/5291/labeled.txt',
        'pascal/5291/unlabeled.txt',
        'pascal/val.txt',
        'cityscapes/186/labeled.txt',
        'cityscapes/1488/labeled.txt',
        'cityscapes/val.txt',
    ),
    'Haochen-Wang409/U2PL/53bbdd2720a0f50b390d56628a3bc7d8f65916c1/data/splits': (
        'pascal/92/labeled.txt',
        'pascal/366/unlabeled.txt',
        'pascal/732/labeled.txt',
        'pascal/662/labeled.txt',
        'pascal/1323/labeled.txt',
        'pascal/1323/unlabeled.txt',
        'pascal/2646/labeled.txt',
        'cityscapes/186/unlabeled.txt',
        'cityscapes/744/labeled.txt',
        'cityscapes/744/unlabeled.txt',
        'cityscapes/1488/unlabeled.txt',
    ),
    'Haochen-Wang409/U2PL/cc103abf45e5ec8089ba5cbb38acac50c3936ba9/data/splits': (
        'cityscapes/372/labeled.txt',
    ),
    'Haochen-Wang409/U2PL/71bb527d1f9f61423d870a3cf8167b99c0cf5d57/data/splits': (
        'cityscapes/372/unlabeled.txt',
    ),
}
_UNIMATCH = {
    'LiheYoung/UniMatch/818609d195fa1079fbb67589299d9aec07acac46/splits': (
        'pascal/1_16/labeled.txt',
    ),
    'LiheYoung/UniMatch/7292bace1bda8f64ca05ae42ca8c0eef045aa392/partitions': (
        'pascal/1_8/labeled.txt',
        'cityscapes/1_16/labeled.txt',
        'cityscapes/1_8/labeled.txt',
        'coco/1_512/labeled.txt',
        'coco/1_256/labeled.txt',
        'coco/1_64/labeled.txt',
        'coco/1_32/labeled.txt',
    ),
    'LiheYoung/UniMatch/77cf3bfb5cc5ddf2fbd56a66c5b2b48d2d0ba122/splits': (
        'pascal/1_4/labeled.txt',
        'cityscapes/1_4/labeled.txt',
        'cityscapes/1_2/labeled.txt',
        'coco/1_128/labeled.txt',
    ),
    # Of 1_64 the list of the unlabelled images was read, which is the rest.
    'LiheYoung/UniMatch-V2/66d517c30ccec7ed157147148e687127686adf87/splits': (
        'ade20k/1_64/labeled.txt',
        'ade20k/1_32/labeled.txt',
        'ade20k/1_16/labeled.txt',
        'ade20k/1_8/labeled.txt',
        'ade20k/1_4/labeled.txt',
    ),
}
PLACES = {'u2pl': _U2PL, 'unimatch': _UNIMATCH}
LAYOUTS = {'u2pl': 'U2PL', 'unimatch': 'UniMatch'}  # whose they are
PAGES = {
    'u2pl': ('https://github.com/Haochen-Wang409/U2PL',),
    'unimatch': (
        'https://github.com/LiheYoung/UniMatch',
        'https://github.com/LiheYoung/UniMatch-V2',
    ),
}

# U2PL's counts of labelled images, which are the names of its folders.
COUNTS = {
    'pascal': (92, 183, 366, 732, 1464, 662, 1323, 2646, 5291),
    'cityscapes': (186, 372, 744, 1488),
}
# UniMatch's folders, those of classic VOC aside, which are called by the count.
_SHARES = {
    'pascal': {662: '1_16', 1323: '1_8', 2646: '1_4'},
    'cityscapes': {186: '1_16', 372: '1_8', 744: '1_4', 1488: '1_2'},
    'ade20k': {316: '1_64', 631: '1_32', 1263: '1_16', 2526: '1_8', 5052: '1_4'},
    'coco': {232: '1_512', 463: '1_256', 925: '1_128', 1849: '1_64', 3697: '1_32'},
}
# Images, labelled and unlabelled together.
TRAIN = {'pascal': 10_582, 'cityscapes': 2_975, 'ade20k': 20_210, 'coco': 118_287}
VAL = {'pascal': 1_449, 'cityscapes': 500}  # of U2PL's lists
IDS = {
    'pascal': r'\d{4}_\d{6}',
    'cityscapes': r'[a-z]+_\d{6}_\d{6}',
    'ade20k': r'ADE_train_\d{8}',
    'coco': r'\d{12}',
}

_ENDING = r'\.(?:jpe?g|png|bmp|tiff?|webp)'
# A line's first file of an image, which may be in quotes and may have spaces in its name.
_FILE = re.compile(rf'(["\']?)(?P<path>.+?{_ENDING})\1(?=\s|$)', re.IGNORECASE)


def image_id(line: str, known: Collection[str] = ()) -> str:
    """Return the id of the image that a line of a list names.

    Args:
        line: an id ('2007_000032') or an image's file ('JPEGImages/2007_000032.jpg',
            'leftImg8bit/train/ulm/ulm_000061_000019_leftImg8bit.png'); after a space or a tab
            anything, such as the file of its label.
        known: ids that there are. With them a name may have spaces and quotes around it, and an id
            may have its folder.

    Returns:
        The known id. Without one the file's name without folder, ending and Cityscapes'
        '_leftImg8bit'; but all of a line that has several words and begins with no image's file.
    """
    text = line.strip()
    word = text.split()[0]
    first = _stem(word.rpartition('/')[2]).removesuffix('_leftImg8bit')
    if not known:
        return first
    whole = text.strip('"\'')
    file = _FILE.match(text)
    path = file['path'] if file else whole
    parts = path.split('/')
    tails = ['/'.join(parts[start:]) for start in range(len(parts))]  # folder by folder less
    # A folder with a space may be an id before the file of a label: the first word goes before.
    sure = [tail for tail in tails if not re.search(r'\s', path.removesuffix(tail))]
    for name in (whole, *sure, first, *tails):
        for found in (name, _stem(name)):
            if found in known:
                return found
    return first if word == text or _stem(word) != word else _stem(whole)


def _stem(name: str) -> str:
    """Return the name of a file without the ending of an image."""
    return re.sub(f'{_ENDING}$', '', name, flags=re.IGNORECASE)


def read(path: str | Path, known: Collection[str] = ()) -> dict[str, int]:
    """Read a list, see `parse`; raises FileNotFoundError where there is no such file."""
    return parse(Path(path).read_bytes(), str(path), known)


def parse(content: bytes, place: str, known: Collection[str] = ()) -> dict[str, int]:
    """Read a list of images, one a line as `image_id` takes them; blank lines count for nothing.

    Args:
        content: of a text file in UTF-8, its lines ended in any way.
        place: where it came from, for errors.
        known: ids that there are, see `image_id`.

    Returns:
        id -> number of its line, from 1, in the list's order.

    Raises:
        ValueError: this is no text, names no image, or one twice; says where.
    """
    try:
        lines = content.decode('utf-8-sig').splitlines()
    except UnicodeDecodeError:
        raise ValueError(f'{place} is no text, expected a list of images, one a line') from None
    found = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        name = image_id(line, known)
        if name in found:
            # Counted twice it would be drawn twice as often; counted once the list would be
            # shorter than its name says.
            raise ValueError(
                f'{place}: got {name!r} in line {found[name]} and again in line {number}, '
                'expected every image once'
            )
        found[name] = number
    if not found:
        raise ValueError(f'{place}: got no images, expected one a line')
    return found


def folders(dataset: str, layout: str) -> dict[int, str]:
    """Return how many images are labelled -> the folder of that list, '662' or '1_16'.

    Args:
        dataset: 'pascal' | 'cityscapes' | 'ade20k' | 'coco'.
        layout: one of `LAYOUTS`; U2PL has no list of the last two.
    """
    named = {count: str(count) for count in COUNTS.get(dataset, ())}
    if layout == 'u2pl':
        return named
    named.pop(5291, None)  # which UniMatch does not have
    return named | _SHARES[dataset]


def places(layout: str) -> dict[str, str]:
    """Return every list that is fetched for a layout, 'pascal/1_16/labeled.txt' -> its address."""
    where = {name: place for place, names in PLACES[layout].items() for name in names}
    return {name: URL.format(place=where[name], name=name) for name in sizes(layout)}


def sizes(layout: str = 'u2pl') -> dict[str, int]:
    """Return every list that is fetched, 'pascal/92/labeled.txt' -> how many images it must have.

    Args:
        layout: one of `LAYOUTS`; of UniMatch's those that U2PL's are not.
    """
    if layout == 'unimatch':
        return {
            f'{dataset}/{name}/labeled.txt': count
            for dataset, named in _SHARES.items()
            for count, name in named.items()
        }
    expected = {}
    for folder, counts in COUNTS.items():
        for count in counts:
            expected[f'{folder}/{count}/labeled.txt'] = count
            expected[f'{folder}/{count}/unlabeled.txt'] = TRAIN[folder] - count
        expected[f'{folder}/val.txt'] = VAL[folder]
    return expected


def check(found: Mapping[str, set[str]], layout: str = 'u2pl') -> None:
    """Make sure that lists are what their names say.

    Args:
        found: name -> the ids in that list; every name of `sizes`, or all those of some datasets.
        layout: one of `LAYOUTS`; UniMatch's have no list of the unlabelled images here.

    Raises:
        ValueError: a list has another number of images or an id of another form; a labelled and
            an unlabelled list share an image or are not, together, the training set that the
            other lists are of; one has an image of val. Names the first list that is wrong.
    """
    datasets = {name.partition('/')[0] for name in found}
    for name, count in sizes(layout).items():
        if (dataset := name.partition('/')[0]) not in datasets:
            continue
        if len(found[name]) != count:
            raise ValueError(f'{name}: got {len(found[name])} images, expected {count}')
        form = IDS[dataset]
        wrong = sorted(i for i in found[name] if not re.fullmatch(form, i))
        if wrong:
            raise ValueError(f'{name}: got {wrong[0]!r}, expected an id of the form {form}')
    for folder, counts in COUNTS.items() if layout == 'u2pl' else ():
        if folder not in datasets:
            continue
        first = f'{folder}/{counts[0]}'
        train = found[f'{first}/labeled.txt'] | found[f'{first}/unlabeled.txt']
        for count in counts:
            name = f'{folder}/{count}/unlabeled.txt'
            labelled, unlabelled = found[f'{folder}/{count}/labeled.txt'], found[name]
            _check_none(name, labelled & unlabelled, 'no image of labeled.txt beside it')
            unlike = (labelled | unlabelled) ^ train
            _check_none(name, unlike, f'with labeled.txt the images of {first}')
        _check_none(f'{folder}/val.txt', train & found[f'{folder}/val.txt'], 'no training image')


def _check_none(name: str, wrong: set[str], expected: str) -> None:
    if wrong:
        more = f' and {len(wrong) - 1} more' if len(wrong) > 1 else ''
        raise ValueError(f'{name}: got {min(wrong)!r}{more}, expected {expected}')
