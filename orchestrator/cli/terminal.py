"""What is printed on the terminal is text, letter by letter: names, prompts and errors may look like rich's markup."""

from __future__ import annotations

from rich.console import Console


def console(*, stderr: bool = False) -> Console:
    """A console that takes `[bold]` and `:smile:` for what they are; what is to be coloured is a rich.text.Text."""
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)
