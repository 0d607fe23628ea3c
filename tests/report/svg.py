"""What a figure says: the texts of an SVG, and the places of its paths."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

SVG = "{http://www.w3.org/2000/svg}"


def texts(svg: str) -> list[str]:
    return ["".join(node.itertext()).strip() for node in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def lines(svg: str, style: str) -> list[list[tuple[float, float]]]:
    """The points of every path whose style holds a word."""
    found = [node.get("d") or "" for node in ElementTree.fromstring(svg).iter(f"{SVG}path") if style in (node.get("style") or "")]
    return [[(float(x), float(y)) for x, y in re.findall(r"[ML] ([\d.e-]+) ([\d.e-]+)", path)] for path in found]
