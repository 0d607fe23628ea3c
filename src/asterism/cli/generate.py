"""`asterism generate LIBRARY TEXT...`."""

from __future__ import annotations

from typing import Annotated

import typer

from asterism.cli.explain import PAPER
from asterism.cli.options import LIBRARY, Given, command
from asterism.cli.places import open_both, query_settings, text_of
from asterism.compose.settings import RENEW, CompositionSettings
from asterism.constellation.settings import MixtureSettings


@command(MixtureSettings, CompositionSettings, omit=("per_module",))
def app(
    library: LIBRARY,
    text: Annotated[list[str], typer.Argument(help="One or more texts; - reads one from stdin.", show_default=False)],
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 64,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token every time.")] = 0.0,
    refine: Annotated[int, typer.Option(min=0, help="Gradient steps of each mixture on its text; each costs three forward passes.")] = 0,
    renew: Annotated[int, typer.Option(min=0, help="Make the mixture again after this many new tokens; 0: never.")] = RENEW,
    paper: PAPER = False,
    *,
    given: Given,
):
    """Answer texts, each under its own mixture; several are answered in one batch, without building a model for each."""
    queries = [text_of(one) for one in text]
    opened, constellation = open_both(library, given, paper=paper)
    settings, composition = query_settings(given, constellation, paper=paper)
    from asterism.compose.answering import answer

    found = answer(
        opened,
        constellation,
        queries,
        mixture=settings,
        composition=composition,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=given.seed,
        refine=refine,
        renew=renew,
    )
    answers = [
        {
            "query": one.query,
            "answer": one.text,
            "specialists": list(one.mixture.specialists),
            "shares": one.mixture.shares,
            "generalist": one.mixture.generalist,
            "entropy": one.mixture.entropy,
        }
        for one in found
    ]

    def show() -> None:
        from asterism.cli.output import answers_table

        answers_table(answers)

    return {"answers": answers}, show
