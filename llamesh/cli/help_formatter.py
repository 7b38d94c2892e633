"""Prints the help of commands. It is that of cyclopts, but a line end inside a paragraph of a docstring is a space.

The terminal's width breaks the lines of help, not the length of the lines of the source. Imports what it needs only when help is printed.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cyclopts.help import HelpPanel
    from rich.console import Console, ConsoleOptions

_LINE_END = re.compile(r"(?<!\n)\n(?!\n)")


class HelpFormatter:
    """The formatter that cyclopts calls for each part of a help page."""

    def __call__(self, console: Console, options: ConsoleOptions, panel: HelpPanel) -> None:
        """Print a panel: a table of commands or parameters."""
        from cyclopts.help import DefaultFormatter, InlineText
        from rich.text import Text

        for entry in panel.entries:
            described = entry.description
            if isinstance(described, InlineText) and isinstance(described.primary_renderable, Text):
                words = described.primary_renderable
                words.plain = _LINE_END.sub(" ", words.plain)
        DefaultFormatter()(console, options, panel)

    def render_usage(self, console: Console, options: ConsoleOptions, usage: Any) -> None:
        """Print the line with the form of the command."""
        from cyclopts.help import DefaultFormatter

        DefaultFormatter().render_usage(console, options, usage)

    def render_description(self, console: Console, options: ConsoleOptions, description: Any) -> None:
        """Print what the command does."""
        from cyclopts.help import DefaultFormatter

        DefaultFormatter().render_description(console, options, description)
