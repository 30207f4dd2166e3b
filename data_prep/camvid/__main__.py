"""Prepares `camvid` from files you have downloaded."""

import argparse
import pathlib
import sys

from data_prep import records
from data_prep.camvid.builder import NEEDED_FROM_USER, SPLITS, Builder, find_pairs


def main() -> None:
    """Reads the published files and says what is in them."""
    parser = argparse.ArgumentParser(
        prog='python -m data_prep.camvid',
        description=__doc__,
        epilog=NEEDED_FROM_USER,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    configs = [config.name for config in Builder.BUILDER_CONFIGS]
    parser.add_argument('--source', required=True, metavar='FOLDER', help='see below')
    parser.add_argument(
        '--config', choices=configs, default=configs[0], help='480x360 (full) or 240x180 (half)'
    )
    parser.add_argument('--data_dir', help='default: TFDS_DATA_DIR or ~/tensorflow_datasets')
    args = parser.parse_args()
    builder = Builder(source=args.source, config=args.config, data_dir=args.data_dir)
    try:
        if not records.is_prepared(builder):
            for split, count in SPLITS.items():  # refuses a wrong folder before any is made
                find_pairs(pathlib.Path(args.source), split, count)
        records.prepare(builder)
    except (OSError, ValueError) as error:
        sys.exit(f'error: {error}')
    print(records.report(builder))


if __name__ == '__main__':
    main()
