"""Makes images of your own, with masks or tags for some of them, the dataset `folder/NAME`."""

import argparse
import fcntl
import functools
import re
import shutil
import sys
from pathlib import Path

from absl import logging

from data_prep import command, images, records
from data_prep.folder import builder, classes, layouts, picture, reading

_SAMPLES = 'samples.png'
_DETAILS = f"""\
FOLDER has one of these layouts; images without a mask are unlabelled, wherever they lie, or tagged
where labels.csv has them:

{layouts.EXPECTED}

Beside them may be classes.txt, a class a line: `name` or `name r g b`.
docs/own_data.md has more."""


def main() -> None:
    """Read the command line, look at all files, report, and write the records."""
    args = _arguments()
    logging.set_verbosity(logging.ERROR)
    with command.stops_in_words(), images.allowed(args.max_pixels):
        _check_name(args.name)
        settings = reading.Settings(
            ignore=tuple(args.ignore),
            classes=args.classes,
            val_share=args.val_share,
            seed=args.seed,
            max_side=args.max_side,
            skip_bad=args.skip_bad,
        )
        plan, problems = reading.read(Path(args.source), settings)
        print('\n'.join(plan.report))
        if len(problems) > args.skip_bad:
            more = f' and {len(problems) - 1} more' if len(problems) > 1 else ''
            raise ValueError(
                f'{problems[0]}{more}: mend what cannot be used, or leave it out with '
                f'--skip_bad {len(problems)}; nothing was written'
            )
        if args.dry_run:
            print('nothing was written, as --dry_run asks')
            return
        _write(args, plan)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog='python -m data_prep.folder',
        description=__doc__,
        epilog=_DETAILS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add('--source', required=True, metavar='FOLDER', help='see below')
    add('--name', default=builder.NAME, help=f'of the dataset ({builder.NAME})')
    add('--data_dir', help='default: TFDS_DATA_DIR or ~/tensorflow_datasets')
    add('--classes', default='', help='pick, merge or leave out: background,cat,cattle=cow+ox,'
        'rest=void')  # fmt: skip
    add('--ignore', type=_whole(0, classes.LARGEST), action='append', default=[], metavar='N',
        help='a value of masks that is void, as 255 is; may be repeated')  # fmt: skip
    add('--val_share', type=_share, default=0.2, metavar='X',
        help='of the labelled images where there is no val split (0.2)')  # fmt: skip
    add('--seed', type=_whole(0), default=0, metavar='N', help='of that draw (0)')
    add('--max_side', type=_whole(0), default=0, metavar='N',
        help='make images smaller whose longer side has more pixels')  # fmt: skip
    add('--max_pixels', type=_whole(1, 1 << 30), metavar='N',
        help='that an image may have, as large ones fill the memory (89,478,485)')  # fmt: skip
    add('--skip_bad', type=_whole(0), default=0, metavar='N',
        help='leave out up to N files, or rows of labels.csv, that cannot be used')  # fmt: skip
    add('--dry_run', action='store_true', help='report, and write nothing')
    add('--overwrite', action='store_true', help='replace a dataset of this name')
    return parser.parse_args()


def _whole(least: int, most: int = (1 << 31) - 1):
    def read(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(
                f'got {text!r}, expected a whole number from {least} to {most}'
            )
        return int(text)

    return read


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f'got {text!r}, expected a number between 0 and 1')
    return value


def _check_name(name: str) -> None:
    """Raise ValueError where configs/folder.py could not tell the name from its other words."""
    from configs.folder import NETWORKS
    from css_jax.methods import METHODS

    words = [*METHODS, *NETWORKS]
    if not re.fullmatch('[A-Za-z][A-Za-z0-9_-]{0,99}', name) or name in words:
        raise ValueError(
            f'--name: got {name!r}, expected a letter, then letters, digits, _ or -, 100 in all, '
            f'and no name of a method or network ({", ".join(words)})'
        )


def _write(args: argparse.Namespace, plan: reading.Plan) -> None:
    """Write the records, in place of others where that is asked for."""
    place = Path(_builder(args, None, args.data_dir).data_dir)
    aside = place.with_name(f'{place.name}.replaced')
    place.parent.mkdir(parents=True, exist_ok=True)
    with (place.parent / '.lock').open('a') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f'{place}: another process is preparing it') from None
        if aside.exists() and not place.exists():  # a replacement was killed between two renames
            aside.rename(place)
        there = _builder(args, None, args.data_dir)
        if not records.is_prepared(there):
            for folder in records.leftovers(there):
                print(f'{folder} is unfinished; remove it', file=sys.stderr)
            records.prepare(_builder(args, plan, args.data_dir))
        elif args.overwrite:
            _replace(args, plan, place, aside)
        elif there.info.metadata['made_from'] != plan.made_from:
            raise ValueError(
                f'{place} has a dataset of other files or settings; expected another --name, or '
                '--overwrite'
            )
        else:
            print(f'folder/{args.name} is prepared already, from the same files')
    if not (place / _SAMPLES).exists():
        picture.draw(plan, place / _SAMPLES)
    print(f'folder/{args.name} is in {place}\nsamples: {place / _SAMPLES}')
    where = f',data.dir={args.data_dir}' if args.data_dir else ''
    train = 'train:   python -m css_jax.main --config configs'
    if plan.found.masks:
        print(f'{train}/folder.py:{args.name},css_mix{where} --workdir runs/{args.name}')
    if plan.tags:
        print(f'{train}/cosa.py:folder:{args.name}{where} --workdir runs/{args.name}_cosa')


def _builder(
    args: argparse.Namespace, plan: reading.Plan | None, data_dir: str | Path | None
) -> builder.Builder:
    """Return the builder of a plan, or without one that of what is there."""
    if plan is None:
        return builder.Builder(config=args.name, data_dir=data_dir)
    return builder.Builder(
        config=args.name,
        data_dir=data_dir,
        class_names=plan.classes.names,
        items={split: functools.partial(reading.items, plan, split) for split in plan.splits},
        made_from=plan.made_from,
        palette=classes.colours(plan.found.table, plan.classes),
        tags=plan.tags,
    )


def _replace(args: argparse.Namespace, plan: reading.Plan, place: Path, aside: Path) -> None:
    """Write records beside others, and put them in their place once they are whole."""
    beside = place.parent / 'replacing'
    for folder in (beside, aside):
        shutil.rmtree(folder, ignore_errors=True)
    try:
        made = _builder(args, plan, beside)
        records.prepare(made)
        picture.draw(plan, Path(made.data_dir) / _SAMPLES)
        place.rename(aside)
        Path(made.data_dir).rename(place)
        shutil.rmtree(aside)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


if __name__ == '__main__':
    main()
