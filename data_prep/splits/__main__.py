"""Puts the field's split lists into a folder, each checked against its name."""

import argparse
import hashlib
import http.client
import itertools
import json
import os
import urllib.request
from pathlib import Path

from data_prep import command
from data_prep.splits import lists

RECORD = 'record.json'
TIMEOUT = 30  # seconds without an answer


def main(arguments: list[str] | None = None) -> None:
    """Fetch or copies the lists, prints what came, and writes them if all of them are right."""
    parser = argparse.ArgumentParser(
        prog='python -m data_prep.splits',
        description=__doc__,
        epilog=f'Published at {", ".join(itertools.chain(*lists.PAGES.values()))}',
    )
    parser.add_argument('--target', required=True, metavar='FOLDER', help='gets the lists')
    parser.add_argument(
        '--from', dest='source', metavar='FOLDER',
        help='has the lists already: pascal/92/labeled.txt, ...; a dataset that it has no list of '
        'is left out; default: they are downloaded',
    )  # fmt: skip
    parser.add_argument(
        '--layout', choices=lists.LAYOUTS, default='u2pl',
        help="unimatch: those of UniMatch's and iMAS's numbers: random draws of blender VOC "
        "(pascal/1_16, 1_8, 1_4), other images of Cityscapes than U2PL's, ADE20K and COCO",
    )  # fmt: skip
    args = parser.parse_args(arguments)
    with command.stops_in_words():
        put(Path(args.target), Path(args.source) if args.source else None, args.layout)


def put(target: Path, source: Path | None = None, layout: str = 'u2pl') -> None:
    """Write every list of `lists.sizes` and a record of where each came from.

    Nothing is written before all lists have come and are right. A list that is in the folder
    already stays if it is the same.

    Args:
        target: folder of the lists; made if missing.
        source: a folder that has them, all or all of some datasets; None: where they are published.
        layout: one of `lists.LAYOUTS`; the lists of both can be in one folder.

    Raises:
        ValueError: a list is not what its name says, or the folder has another one of that name.
        OSError: a list cannot be read or downloaded; names it.
    """
    places = lists.places(layout)
    if source:
        places = _there(places, source)
    missing = [name for name in places if source and not (source / name).is_file()]
    if missing:
        first, *_, last = places
        raise FileNotFoundError(
            f'--from {source}: there is no {source / missing[0]}; expected the folder that has '
            f'all {len(places)} lists: {first}, ..., {last}'
        )
    came, record, ids = {}, {}, {}
    print(f'{"list":<30}{"images":>7}  sha256')
    for name, url in places.items():
        place = str(source / name) if source else url
        came[name] = Path(place).read_bytes() if source else _download(place)
        ids[name] = set(lists.parse(came[name], place))
        sha256 = hashlib.sha256(came[name]).hexdigest()
        record[name] = {'from': place, 'images': len(ids[name]), 'sha256': sha256}
        print(f'{name:<30}{len(ids[name]):>7}  {sha256}', flush=True)
    lists.check(ids, layout)
    for name in came:
        path = target / name
        if path.exists() and path.read_bytes() != came[name]:
            sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
            raise ValueError(
                f'{path}: got another list there already, of sha256 {sha256}, expected the same '
                'one or none; remove it or take another --target'
            )
    for name, content in came.items():
        _write(target / name, content)
    if (target / RECORD).exists():  # it may be of the other layout
        record = json.loads((target / RECORD).read_text()) | record
    _write(target / RECORD, (json.dumps(record, indent=2) + '\n').encode())
    print(f'written: {len(came)} lists and {RECORD} in {target}')


def _there(places: dict[str, str], source: Path) -> dict[str, str]:
    """Leave out the datasets that a folder has no list of, unless it has none of any."""
    every = {name.partition('/')[0] for name in places}
    there = {name.partition('/')[0] for name in places if (source / name).is_file()} or every
    if there < every:
        print(f'no lists of {", ".join(sorted(every - there))} in {source}')
    return {name: url for name, url in places.items() if name.partition('/')[0] in there}


def _download(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
            return answer.read()
    except (OSError, http.client.HTTPException) as error:  # the second: cut off on the way
        raise OSError(
            f'{url}: {error}; the lists can also be read from a folder, see --from'
        ) from None


def _write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix('.part')
    draft.write_bytes(content)
    os.replace(draft, path)


if __name__ == '__main__':
    main()
