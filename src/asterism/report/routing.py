"""The page of a router: what it gains, how it loads its experts, and where it sends the tokens of a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log2
from pathlib import Path
from typing import Any

from asterism.core.words import counted
from asterism.report.figures import loss_dots
from asterism.report.findings import listed
from asterism.report.maps import reach_map
from asterism.report.pages import figure, rendered, written
from asterism.report.tokens import load_bars, token_map

MOST_TOKENS = 160
"""Tokens whose weights are drawn block by block; the text itself is shown whole."""


def write_routing(found: Mapping[str, Any], out: str | Path) -> Path:
    """Write a router's page to the file `out`; StorageError where it cannot be written.

    found: `blocks`, `models` and `settings` of the router; `texts`, `router_loss` and `rivals` of `Comparison.to_dict()` where it was
    compared; `text` and what `Trace.to_dict()` gives where a text is shown.
    """
    return written(routing_html(found), out)


def routing_html(found: Mapping[str, Any]) -> str:
    """The page as a string; equal figures give equal text."""
    blocks = found["blocks"]
    if found["settings"]["scope"] == "single":
        blocks = [{**blocks[0], "block": "all"}]
    deep = len(blocks) > 1 and found["settings"]["depth"] > 1
    said = [*(_compared(found) if "rivals" in found else []), *(_sent(found) if "tokens" in found else [])]
    lead, *more = [*said, _decided(blocks)]
    return rendered(
        "routing.html.j2",
        title="A router at work",
        lead=lead,
        more=more,
        found=found,
        blocks=blocks,
        losses=_losses(found) if "rivals" in found else "",
        load=load_bars(blocks, found["models"]),
        reach=reach_map(blocks) if deep else "",
        tokens=_tokens(found) if "tokens" in found else [],
        maps=_maps(found) if "tokens" in found else {},
        most=MOST_TOKENS,
    )


def _compared(found: Mapping[str, Any]) -> list[str]:
    """The router beside the best of the models that it is made of, in one sentence."""
    best = min(found["rivals"], key=lambda row: row["loss"])
    told = f"On {counted(found['texts'], 'text')} the router loses {found['router_loss']['loss']:.3f} nats a token"
    name = "the generalist" if best["name"] == "generalist" else f"{best['name']}, the best specialist,"
    if best["gain_low"] is None:
        return [f"{told}, {name} alone {best['loss']:.3f}; one text decides nothing."]
    interval = f"95\u00a0% interval {figure(best['gain_low'])} to {figure(best['gain_high'])}"
    if best["gain_low"] > 0:
        return [f"{told}, {best['gain']:.3f} less than {name} alone ({interval})."]
    if best["gain_high"] < 0:
        return [f"{told}, {-best['gain']:.3f} more than {name} alone (gain {interval}): it does not pay here."]
    return [f"{told}; {name} alone loses {best['loss']:.3f}, and the texts do not decide between them (gain {interval})."]


def _sent(found: Mapping[str, Any]) -> list[str]:
    """Who has how much of a text, in one sentence."""
    means = {name: _mean([_mean(row) for row in rows]) for name, rows in found["shares"].items()}
    ranked = [f"{name} ({100 * share:.0f}\u00a0%)" for name, share in sorted(means.items(), key=lambda item: -item[1])]
    read, cut = len(found["tokens"]), found["left_out"]
    count = f"first {read} tokens (of {read + cut})" if cut else f"{read} tokens"
    return [f"The weights of this text's {count} go to {listed(ranked)}."]


def _decided(blocks: Sequence[Mapping[str, Any]]) -> str:
    """How sure the gates are."""
    most = log2(len(blocks[0]["mass"]))
    entropy = _mean([own["entropy"] for own in blocks])
    if entropy < 0.25 * most:
        sure = "the gates mostly choose one expert"
    elif entropy < 0.9 * most:
        sure = "the gates lean to some experts"
    else:
        sure = "the gates hardly tell tokens apart, so a fixed mixture would do nearly the same"
    return f"A token's weights have {entropy:.2f} bits of entropy on average, of at most {most:.2f}: {sure}."


def _losses(found: Mapping[str, Any]) -> str:
    rows = [("router", found["router_loss"]), *((row["name"], row) for row in found["rivals"])]
    bars = [(name, row["loss"], row["low"], row["high"]) for name, row in sorted(rows, key=lambda item: item[1]["loss"])]
    return loss_dots(bars, found["texts"], ["router"])


def _tokens(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each token with its leading model over all blocks (1 for the first, ...), and how far it leads, 0 to 100."""
    means = [[_mean(column) for column in zip(*found["shares"][name], strict=True)] for name in found["models"]]  # [models][T]
    even, shown = 1 / len(means), []
    for place, token in enumerate(found["tokens"]):
        shares = [row[place] for row in means]
        first = max(range(len(shares)), key=shares.__getitem__)
        strength = max(0.0, (shares[first] - even) / (1 - even)) if even < 1 else 1.0
        told = ", ".join(f"{name} {100 * share:.0f} %" for name, share in zip(found["models"], shares, strict=True))
        shown.append({"text": token, "series": first % 6 + 1, "strength": round(100 * strength), "told": told})
    return shown


def _maps(found: Mapping[str, Any]) -> dict[str, str]:
    """For each model its weight on every token in every block; of two models, one has what the other leaves."""
    names = found["models"] if len(found["models"]) != 2 else found["models"][:1]
    single = found["settings"]["scope"] == "single"
    tokens, maps = found["tokens"][:MOST_TOKENS], {}
    for name in names:
        rows = [row[:MOST_TOKENS] for row in found["shares"][name]]
        labels = ["all"] if single else [str(own["block"]) for own in found["blocks"]]
        maps[name] = token_map(tokens, labels, rows[:1] if single else rows, name=name)
    return maps


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
