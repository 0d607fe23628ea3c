"""`asterism index LIBRARY`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from asterism.cli.options import LIBRARY, Given, command
from asterism.cli.places import CONSTELLATION, named, open_both, open_library
from asterism.constellation.settings import IndexSettings
from asterism.core.errors import MismatchError, SettingsError
from asterism.core.storage import read_json

if TYPE_CHECKING:
    from asterism.models.library import Library

STATE = ".fingerprints"
"""Folder in the library where finished domains of an unfinished index are kept."""


@command(IndexSettings)
def app(
    library: LIBRARY,
    data: Annotated[list[Path] | None, typer.Option(help="Folder of <domain>.train.jsonl files (plain or .gz); may be repeated.")] = None,
    generalist: Annotated[str | None, typer.Option(help="Makes the library: folder or Hub id of the generalist.")] = None,
    specialist: Annotated[list[str] | None, typer.Option(help="name=FOLDER or name=HUB-ID of a specialist; may be repeated.")] = None,
    probes_per_domain: Annotated[int, typer.Option(min=1, help="Texts drawn of each domain's train file.")] = 40,
    paper: Annotated[
        bool,
        typer.Option("--paper", help="The paper's settings: Gram-Schmidt in the order given, no centring, top K by absolute coefficient."),
    ] = False,
    add: Annotated[str | None, typer.Option(help="Fingerprint only this domain and add it to the index.")] = None,
    remove: Annotated[str | None, typer.Option(help="Take this domain out of the index; nothing is fingerprinted.")] = None,
    *,
    given: Given,
):
    """Fingerprint each domain's probes and write the library's constellation.

    Probes come from the train files, so that held-out texts stay untouched. With --generalist (and --specialist) the
    library's manifest is written first; models on the Hub are named by their ids.
    """
    if not remove and not data:
        raise SettingsError("An index needs text.", met="no --data", mend="give --data DIR with <domain>.train.jsonl files")
    members = named("specialist", specialist or (), "--specialist medical=me/medical-lora, a folder or a Hub id")
    from asterism.constellation.index import Constellation
    from asterism.constellation.probes import draw_index_probes
    from asterism.core.corpus import read_corpus

    opened = _library(library, generalist, members, given)
    place = opened.root / CONSTELLATION
    if remove:
        constellation = Constellation.load(place, opened, without=[remove])
    elif add:
        probes = draw_index_probes(read_corpus(*(data or ())), [add], probes_per_domain, given.seed)
        constellation = open_both(library, given)[1].with_domain(add, probes[add])
    else:
        settings = given.settings(IndexSettings, IndexSettings.paper() if paper else None)
        probes = draw_index_probes(read_corpus(*(data or ())), opened.names, probes_per_domain, given.seed)
        constellation = Constellation.build(opened, probes, settings, state=opened.root / STATE)
    constellation.save(place)
    shutil.rmtree(opened.root / STATE, ignore_errors=True)
    counts = dict(zip(constellation.domains, map(int, constellation.counts), strict=True))

    def show() -> None:
        from asterism.cli.output import line, table

        table(f"constellation of {library}", ["domain", "probes"], [[name, str(n)] for name, n in counts.items()])
        line(str(place))

    answer = {"constellation": place, "domains": list(constellation.domains), "probes": counts}
    return {**answer, "settings": constellation.settings.model_dump(mode="json")}, show


def _library(root: Path, generalist: str | None, members: dict[str, str], given: Given) -> Library:
    """The library, made or grown by what was named; what it holds already must be what was named."""
    from asterism.models.library import MANIFEST, Library
    from asterism.models.sources import is_same

    if generalist and not (root / MANIFEST).exists():
        Library.create(root, generalist, members)
    opened = open_library(root, given)
    manifest = read_json(root / MANIFEST)
    sources = {"generalist": manifest["generalist"], **{entry["name"]: entry["source"] for entry in manifest["specialists"]}}
    wanted = {**({"generalist": generalist} if generalist else {}), **members}
    for name, source in wanted.items():
        if name not in sources:
            opened.add(name, source)
        elif not is_same(sources[name], source, root):
            mend = "leave it out, remove the old one first, or choose another folder for the library"
            raise MismatchError(f"The library holds another {name}.", met=f"{source}, not {sources[name]}", mend=mend)
    return opened
