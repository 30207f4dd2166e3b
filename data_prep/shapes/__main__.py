"""Prepares `shapes`."""

import argparse

from data_prep import command, records
from data_prep.shapes.builder import Builder


def main() -> None:
    """Draw the dataset and says what is in it."""
    parser = argparse.ArgumentParser(prog='python -m data_prep.shapes', description=__doc__)
    configs = [config.name for config in Builder.BUILDER_CONFIGS]
    parser.add_argument('--config', choices=configs, default=configs[0], help='pixels a side')
    parser.add_argument('--data_dir', help='default: TFDS_DATA_DIR or ~/tensorflow_datasets')
    args = parser.parse_args()
    builder = Builder(config=args.config, data_dir=args.data_dir)
    with command.stops_in_words():
        records.prepare(builder)
        print(records.report(builder))


if __name__ == '__main__':
    main()
