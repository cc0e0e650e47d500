"""Running commands in this process, and reading what they print."""

import re

from monarch_sciml.cli import main

__all__ = ["refused", "status", "table_of"]


def status(*arguments: object) -> int:
    """Run the command in this process; its exit status. Strings are split into words."""
    words = [a.split() if isinstance(a, str) else [str(a)] for a in arguments]
    try:
        main([word for group in words for word in group])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def refused(capsys, *arguments: object) -> str:
    """Run a command that must fail, and return its only line of output."""
    assert status(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"monarch-sciml: expected .+; found .+; .+\n", err), err
    return err


def table_of(printed: str) -> list[dict[str, str]]:
    """The first Markdown table, its columns below each other."""
    lines = [line for line in printed.splitlines() if line.startswith("|")]
    assert len({(len(line), line.count("|")) for line in lines}) == 1, lines
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return [dict(zip(head, row, strict=True)) for row in rows]
