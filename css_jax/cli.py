"""The command `css-jax`: the programs of the project under one name, in any folder.

css-jax MODE ...            python -m css_jax.main --mode MODE ...
css-jax prepare NAME ...    python -m data_prep.NAME ...
css-jax --version
"""

import importlib.util
import pkgutil
import runpy
import sys

import css_jax
from css_jax.modes import MODES

PREPARE = 'prepare'


def main() -> None:
    """Run the program that the command line names; a mistake is one line."""
    first, rest = (sys.argv[1:2] or ['--help'])[0], sys.argv[2:]
    if first == '--version':
        print(f'css_jax {css_jax.__version__}')
    elif first in ('--help', '-h', 'help'):
        print(usage())
    elif first == PREPARE:
        prepare(rest)
    else:
        run(first, rest)


def usage() -> str:
    """Return what `css-jax --help` prints."""
    lines = [__doc__.strip(), '', 'MODE is one of', '']
    lines += [f'    {name:<14}{text}' for name, text in MODES.items()]
    lines += ['', f'NAME is one of {", ".join(datasets())}.']
    lines += ['', '`css-jax MODE --help` lists the flags.']
    return '\n'.join(lines)


def datasets() -> list[str]:
    """List the names of the datasets that a command prepares."""
    import data_prep

    found = [module.name for module in pkgutil.iter_modules(data_prep.__path__) if module.ispkg]
    there = [name for name in found if importlib.util.find_spec(f'data_prep.{name}.__main__')]
    return sorted(there)


def prepare(arguments: list[str]) -> None:
    """Run `python -m data_prep.NAME` with the arguments that follow the name."""
    name = (arguments or [''])[0]
    if name not in datasets():
        sys.exit(f'error: css-jax {PREPARE}: got {name!r}, expected one of {", ".join(datasets())}')
    sys.argv = [f'css-jax {PREPARE} {name}', *arguments[1:]]
    runpy.run_module(f'data_prep.{name}', run_name='__main__', alter_sys=False)


def run(mode: str, arguments: list[str]) -> None:
    """Run one mode of `css_jax.main`."""
    if mode not in MODES:
        expected = ', '.join([*MODES, PREPARE, '--version'])
        sys.exit(f'error: css-jax: got {mode!r}, expected one of {expected}')
    sys.argv = ['css-jax', f'--mode={mode}', *arguments]
    # As the main module, as absl lists the flags of that one alone.
    runpy.run_module('css_jax.main', run_name='__main__', alter_sys=True)


if __name__ == '__main__':
    main()
