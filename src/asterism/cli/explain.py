"""`asterism explain LIBRARY TEXT`."""

from __future__ import annotations

from typing import Annotated

import typer

from asterism.cli.options import LIBRARY, Given, command
from asterism.cli.places import open_both, query_settings, text_of
from asterism.constellation.settings import MixtureSettings

QUERY = Annotated[str, typer.Argument(help="The text, or - for stdin.", show_default=False)]
PAPER = Annotated[bool, typer.Option("--paper", help="The paper's settings: Gram-Schmidt basis, last 4 blocks.")]


@command(MixtureSettings, omit=("per_module",))
def app(library: LIBRARY, text: QUERY, paper: PAPER = False, *, given: Given):
    """Show what a text asks of the library: coefficients, mixture, entropy, and who holds the most nodes, layer by layer."""
    query = text_of(text)
    opened, constellation = open_both(library, given, paper=paper)
    settings, _ = query_settings(given, constellation, paper=paper)
    from asterism.constellation.explanation import explain

    found = explain(opened, constellation, query, settings)

    def show() -> None:
        from asterism.cli.output import explanation_tables

        explanation_tables(found)

    return found, show
