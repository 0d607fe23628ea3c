"""`asterism rank LIBRARY --data DIR`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from asterism.cli.options import LIBRARY, Given, command
from asterism.cli.places import open_library
from asterism.core.errors import DataError
from asterism.evaluate.settings import EvaluationSettings

USED = ("single_per_domain", "cross_per_pair", "max_length")
"""Settings of an evaluation that say which texts it leaves over, and how they are read."""


@command(EvaluationSettings, omit=tuple(name for name in EvaluationSettings.model_fields if name not in USED))
def app(
    library: LIBRARY,
    data: Annotated[list[Path], typer.Option(help="Folder of <domain>.heldout files, or a file of rows with `domains`; may be repeated.")],
    nats: Annotated[float, typer.Option(min=0, help="How far a specialist's mean loss on its texts may move, in nats a token.")] = 0.01,
    per_group: Annotated[int, typer.Option(min=1, help="Texts of each domain, of those that no test draws.")] = 20,
    *,
    given: Given,
):
    """Find the rank to which full specialists may be cut for serving, `asterism serve --rank`.

    What a full specialist changed in each matrix is cut to its leading singular directions, of twice as many each time, until its loss on
    held-out texts of its domain, which `evaluate` with the same seed and counts never scores, moves by no more than `--nats`.
    """
    settings = given.settings(EvaluationSettings)
    opened = open_library(library, given)
    from asterism.core.corpus import read_corpus
    from asterism.evaluate.probes import by_group, validation_probes
    from asterism.serve.local.lowrank import least_rank

    groups = by_group(validation_probes(read_corpus(*data), opened.names, settings, per_group))
    texts = {name: groups[name] for name in opened.names if name in groups}
    if not texts:
        raise DataError("No text belongs to one specialist's domain alone.", met=", ".join(groups), mend="give <domain>.heldout.jsonl")
    found = least_rank(opened, texts, nats=nats, max_length=settings.max_length)
    unjudged = [name for name in opened.names if name not in texts]

    def show() -> None:
        from asterism.cli.output import line, table

        tried = sorted({rank for moved in found.moved.values() for rank in moved})
        rows = [[name, *(f"{moved[rank]:.4f}" if rank in moved else "" for rank in tried)] for name, moved in found.moved.items()]
        table("How far the loss moves, nats a token, by rank", ["specialist", *map(str, tried)], rows)
        if unjudged:
            line(f"without texts, so not judged: {', '.join(unjudged)}")
        line(f"asterism serve {library} --rank {found.rank}" if found.rank else f"none of these is within {nats:g} nats: serve them whole")

    return {"rank": found.rank, "nats": nats, "moved": found.moved, "unjudged": unjudged}, show
