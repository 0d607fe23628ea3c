"""`asterism export LIBRARY --domain NAME | --mixture SHARES | --saved LABEL --out DIR`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from asterism.cli.compose import FORM, RANK, check_rank
from asterism.cli.options import LIBRARY, Given, command
from asterism.cli.places import open_both, open_library, query_settings
from asterism.compose.settings import CompositionSettings
from asterism.constellation.settings import MixtureSettings
from asterism.core.errors import SettingsError
from asterism.core.settings import Settings

if TYPE_CHECKING:
    from asterism.constellation.mixture import Mixture
    from asterism.models.library import Library

Asked = tuple["Library", "Mixture", CompositionSettings, dict[str, Any]]
"""The library, what to write of it, where it acts, and what asked for it."""


@command(MixtureSettings, CompositionSettings, omit=("per_module",))
def app(
    library: LIBRARY,
    out: Annotated[Path, typer.Option(help="Folder to write; what lies there is replaced whole.")],
    domain: Annotated[str | None, typer.Option(help="The mean mixture of this domain's probes.", show_default=False)] = None,
    mixture: Annotated[
        str | None, typer.Option(help="A mixture: name=SHARE,...; what is left of 1 is the generalist's.", show_default=False)
    ] = None,
    saved: Annotated[str | None, typer.Option(help="A composition that a server has saved under this label.", show_default=False)] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(help="With --domain: folder of <domain>.train.jsonl files, whose probes are read; may be repeated."),
    ] = None,
    form: FORM = "checkpoint",
    rank: RANK = None,
    *,
    given: Given,
):
    """Write a mixture, a whole domain's mean mixture or a saved composition as one model.

    Of a domain's probes the index keeps fingerprints alone, so without --data their mixtures are those of mode `fast`.
    """
    check_rank(form, rank)
    asked = {"--domain": domain, "--mixture": mixture, "--saved": saved}
    if len(named := [option for option, value in asked.items() if value is not None]) != 1:
        met = " and ".join(named) or "none of them"
        raise SettingsError("An export is of one composition.", met=met, mend="give one of --domain, --mixture and --saved")
    if data and domain is None:
        raise SettingsError("Only a domain has probes to read.", met=f"{named[0]} with --data", mend="leave --data out")
    opened, made, composition, origin = _asked(library, domain, mixture, saved, data, given)
    from asterism.compose.export import save_adapter, save_checkpoint

    kept: dict[str, Any] = {}
    if form == "adapter":
        kept = asdict(save_adapter(opened, made, out, composition, rank=rank, origin=origin))
    else:
        save_checkpoint(opened, made, out, composition, origin=origin)

    def show() -> None:
        from asterism.cli.output import line, written_lines

        line(f"of {', '.join(f'{name} {value}' for name, value in origin.items())}")
        written_lines(made, form, out, kept)

    answer = {"out": out, "as": form, "origin": origin, "specialists": list(made.specialists), "shares": made.shares}
    answer |= {"generalist": made.generalist, "delta_scale": made.scale, "adapter": kept or None}
    return {**answer, "settings": composition.model_dump(mode="json")}, show


def _asked(library: Path, domain: str | None, shares: str | None, saved: str | None, data: Sequence[Path] | None, given: Given) -> Asked:
    if domain is not None:
        return _of_domain(library, domain, data, given)
    _refuse(given, MixtureSettings, "A mixture that is given is not chosen.")
    if saved is not None:
        _refuse(given, CompositionSettings, "A saved composition has settings of its own.")
        return _of_label(library, saved, given)
    from asterism.constellation.mixture import Mixture

    opened, wanted = open_library(library, given), parsed_shares(shares or "")
    composition = given.settings(CompositionSettings)
    return opened, Mixture.given(wanted, opened.names, opened.anatomy.hidden_size), composition, {"mixture": shares}


def _of_domain(library: Path, domain: str, data: Sequence[Path] | None, given: Given) -> Asked:
    from asterism.constellation.averages import domain_mixture
    from asterism.constellation.probes import draw_index_probes
    from asterism.core.corpus import read_corpus

    opened, constellation = open_both(library, given)
    settings, composition = query_settings(given, constellation, paper=False)
    if not data and "mode" not in given.values and settings.mode == "evidence":
        settings = settings.changed(mode="fast")
    count = constellation.fingerprints(domain).shape[0]
    texts = draw_index_probes(read_corpus(*data), [domain], count, given.seed)[domain] if data else None
    made = domain_mixture(constellation, domain, settings, texts)
    return opened, made, composition, {"domain": domain, "probes": len(texts) if texts else count, "mode": settings.mode}


def _of_label(library: Path, label: str, given: Given) -> Asked:
    from asterism.serve.saved import Saved

    opened = open_library(library, given)
    return opened, *Saved(opened).recall(label), {"saved": label}


def parsed_shares(text: str) -> dict[str, float]:
    """`a=0.5,b=0.3` as numbers by name; SettingsError for another form or a name given twice."""
    found: dict[str, float] = {}
    for part in text.split(","):
        name, _, share = (word.strip() for word in part.partition("="))
        try:
            if not name or name in found:
                raise ValueError
            found[name] = float(share)
        except ValueError:
            mend = "e.g. medical=0.7,legal=0.3"
            raise SettingsError("A mixture is written name=SHARE,..., each name once.", met=text, mend=mend) from None
    return found


def _refuse(given: Given, settings: type[Settings], wrong: str) -> None:
    """SettingsError for settings that would change nothing."""
    if useless := [name for name in given.values if name in settings.model_fields]:
        raise SettingsError(wrong, met=", ".join(useless), mend="leave it out")
