"""Tables of mIoU as data: which configuration gives each cell, and the published number."""

from configs.tables import css, imas, unimatch
from configs.tables.cells import Cell, Table

__all__ = ['TABLES', 'Cell', 'Table', 'argument', 'file_name', 'get', 'heading', 'method']

TABLES: dict[int | str, Table] = {**css.TABLES, **imas.TABLES, **unimatch.TABLES}


def get(name: str | int) -> Table:
    """Return a table.

    Args:
        name: its number in the paper, or as 'imas:classic'.

    Raises:
        ValueError: there is no such table of runs.
    """
    by_name = {str(known): table for known, table in TABLES.items()}
    if str(name) not in by_name:
        raise ValueError(f'--table: got {str(name)!r}, expected one of {", ".join(by_name)}')
    return by_name[str(name)]


def heading(name: str | int) -> str:
    """Return a table's name and title, as in 'Table 1: ...'."""
    numbered = f'Table {name}: ' if str(name).isdecimal() else ''
    return numbered + get(name).title


def file_name(name: str | int) -> str:
    """Return the name of the file that a table is written to; it has no colon."""
    return f'table{name}.md' if str(name).isdecimal() else f'table_{name}.md'.replace(':', '_')


def method(cell: Cell, own: bool = True) -> str:
    """Return the words that say what is run in a cell.

    Args:
        cell: of a table.
        own: with the table's own file.
    """
    return f'{cell.method},{cell.setup}' if own and cell.setup else cell.method


def argument(table: Table, cell: Cell) -> str:
    """Return what follows the colon of `table.file` for a cell, as in 'classic,92,css_mix'."""
    return ','.join(filter(None, (table.protocol, str(cell.labels), method(cell))))
