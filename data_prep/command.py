"""The command of every dataset that is made from files the user has: `python -m data_prep.NAME`."""

import argparse
import contextlib
import signal
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path

from data_prep import records


def run(
    name: str,
    purpose: str,
    dataset: types.ModuleType,
    *,
    check: Callable[[Path], object],
    download: Callable[[Path], None] | None = None,
) -> None:
    """Read the command line, prepare the dataset and say what is in it.

    Args:
        name: the dataset's.
        purpose: one sentence for --help.
        dataset: module with `Builder` and `NEEDED_FROM_USER`.
        check: raises OSError or ValueError where --source is not what is needed; called
            before any folder is made.
        download: fetches what is missing to --source; None: only the user may.
    """
    parser = argparse.ArgumentParser(
        prog=f'python -m data_prep.{name}',
        description=purpose,
        epilog=dataset.NEEDED_FROM_USER,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    configs = {config.name: config for config in dataset.Builder.BUILDER_CONFIGS}
    described = '; '.join(f'{key}: {config.description}' for key, config in configs.items())
    parser.add_argument('--source', required=True, metavar='FOLDER', help='see below')
    parser.add_argument('--config', choices=configs, default=next(iter(configs)), help=described)
    parser.add_argument('--data_dir', help='default: TFDS_DATA_DIR or ~/tensorflow_datasets')
    if download is not None:
        parser.add_argument(
            '--download', action='store_true', help='fetch what FOLDER lacks of the files below'
        )
    args = parser.parse_args()
    source = Path(args.source)
    builder = dataset.Builder(source=args.source, config=args.config, data_dir=args.data_dir)
    with stops_in_words():
        if not records.is_prepared(builder):
            if download is not None and args.download:
                download(source)
            check(source)
            # Not removed: another process may be writing there, on another machine even.
            for folder in records.leftovers(builder):
                print(
                    f'{folder} is unfinished; unless it is being prepared elsewhere, remove it',
                    file=sys.stderr,
                )
        records.prepare(builder)
        print(records.report(builder))


@contextlib.contextmanager
def stops_in_words() -> Iterator[None]:
    """End the process in one line, not a traceback: 1 on OSError and ValueError, 130 on Ctrl-C.

    SIGTERM does as Ctrl-C; by itself it would leave what is half written.
    """
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except (OSError, ValueError) as error:
        sys.exit(f'error: {error}')
    except KeyboardInterrupt as interrupt:
        print(f'interrupted: {interrupt}'.removesuffix(': '), file=sys.stderr)
        sys.exit(130)
    finally:
        signal.signal(signal.SIGTERM, before)
