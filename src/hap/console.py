"""What programs print besides lines."""

from rich.console import Console
from rich.table import Table
from rich.text import Text


def print_table(columns: list[str], rows: list[list[str]]) -> None:
    """A plain table on the console, first column left, numbers right."""
    table = Table()
    for i, name in enumerate(columns):
        table.add_column(name, justify="left" if i == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))  # as it is: brackets of a name are no markup
    Console().print(table)
