"""Help with a last part that keeps its lines: tables and examples, which typer would join or not by its version."""

from typing import Any

from typer.core import TyperCommand, TyperGroup

from durably.cli.output import emit_rich, text


class _WithLastPart:
    """Shows the epilog as it is written, headings in bold: lines that are not indented and end without a full stop."""

    epilog: str | None

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Show the help; the last part after typer's."""
        last_part, self.epilog = self.epilog, None
        try:
            super().format_help(ctx, formatter)  # type: ignore[misc] # the class beside this one has it
        finally:
            self.epilog = last_part
        words = (last_part or "").strip()
        if formatter.getvalue():  # without rich, help is collected
            formatter.write(f"\n{words}\n")
        else:
            emit_rich(*(text(f" {line}", "bold" if _is_heading(line) else "") for line in f"\n{words}\n".split("\n")))


class Command(_WithLastPart, TyperCommand):
    """A command with such help."""


class Group(_WithLastPart, TyperGroup):
    """The program, with such help."""


def _is_heading(line: str) -> bool:
    return bool(line) and not line.startswith(" ") and not line.endswith(".")
