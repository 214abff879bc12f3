"""`wsipipe doctor`: is this machine fit?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    out: Annotated[Path, typer.Option(help="Folder that results would go to; it is not made.")] = (
        Path("wsipipe-out")
    ),
    quick: Annotated[
        bool,
        typer.Option("--quick", help="A second at most: leaves out torch, slides and the hub."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Is this machine fit? Every problem comes with its remedy.

    [bold]Examples[/bold]

      wsipipe doctor                       everything, a few seconds

      wsipipe doctor --out /data/results   that disk: room, writing, file locks

      wsipipe doctor --quick               health check of a container

    Exit code 0: fit (warnings are allowed); 1: something essential is broken.
    """
    import json

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from wsipipe.doctor import examine, is_fit

    findings = examine(out, quick=quick)
    fit = is_fit(findings)
    if as_json:
        checks = [finding.as_dict() for finding in findings]
        typer.echo(json.dumps({"fit": fit, "checks": checks}, ensure_ascii=False))
        raise typer.Exit(0 if fit else 1)
    marks = {
        "good": ("✓", "green"), "note": ("·", "dim"), "warning": ("!", "yellow"),
        "broken": ("✗", "bold red"),
    }  # fmt: skip
    table = Table(box=None, show_header=False, padding=(0, 1))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    group = ""
    for finding in findings:
        if finding.group != group:
            group = finding.group
            table.add_row("", Text(group, style="bold"), "")
        mark, style = marks[finding.status]
        detail = Text(finding.detail)
        if finding.remedy:
            detail.append(f"\n→ {finding.remedy}", style="dim" if style == "dim" else style)
        table.add_row(Text(mark, style=style), Text(finding.name), detail)
    console = Console()
    console.print(table)
    counts = {status: sum(f.status == status for f in findings) for status in marks}
    if fit:
        console.print(f"\nFit. {counts['warning']} warnings.", style="green")
    else:
        console.print(f"\nNot fit: {counts['broken']} essential checks failed.", style="bold red")
    raise typer.Exit(0 if fit else 1)
