"""One rung of the ladder: a generalist, specialists a seed, and what they are trained on, read from a YAML file in `recipes/`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from asterism.core.errors import UnknownName
from asterism.core.settings import Settings
from asterism.models.settings import TrainingSettings

RECIPES = Path(__file__).parent / "recipes"
DOMAINS = ("medical", "legal", "code", "science")
"""The paper's order (FACTS.md section 1); Gram-Schmidt depends on it."""


class Scratch(Settings):
    """A generalist trained from nothing, with a tokenizer of its own unless another is named."""

    shape: Literal["gpt2", "qwen2", "llama"]
    """Architecture."""
    hidden: int
    """Width of the hidden state."""
    blocks: int
    """Transformer blocks."""
    positions: int = 256
    """Tokens of context."""
    vocabulary: int = 4096
    """Tokens that the tokenizer learns at most; of a named one, how many it has."""
    tokenizer: str | None = None
    """Folder or Hub id of a tokenizer to take instead of learning one."""


class Text(Settings):
    """A data set of the Hugging Face Hub."""

    dataset: str
    """Hub id, `owner/name` or `owner/name:configuration`, or the address of its files (asterism.models.datasets)."""
    column: str = "text"
    """Column of text; `outer.inner` for a nested one."""
    limit: int | None = None
    """Rows read at most."""


class Rung(Settings):
    """Everything that one scale's models are made from."""

    name: str
    """Label in every table."""
    family: str
    """Rungs of one family differ only in size."""
    start: Scratch | str
    """A shape to train from nothing, or the Hub id (or folder) of a pretrained generalist."""
    generalist: TrainingSettings | None
    """How the generalist is trained; None takes a pretrained one as it is."""
    specialist: TrainingSettings
    """How each specialist is trained from it; the ladder's seed replaces its seed."""
    share: float = Field(default=0.15, ge=0, le=1)
    """Share of every domain's training text in the generalist's own, where text comes from folders."""
    texts: dict[str, tuple[Text, ...]] = Field(default_factory=dict)
    """Data sets by domain, `general` among them; empty: the folders given on the command line."""
    config: dict[str, int | bool | str] | None = None
    """The config of a pretrained start, for the dry run alone: what sizes it has while it is not at hand."""
    probes: int = Field(default=40, ge=1)
    """Index probes a domain, and as many general ones (section 4.1)."""
    last: int = Field(default=4, ge=1)
    """Blocks that the paper's composition mixes (section 4.4)."""

    @property
    def length(self) -> int:
        """Tokens read of every text."""
        return self.specialist.max_length


def rungs(scale: str) -> list[Rung]:
    """The rungs of a ladder, smallest first within each family; UnknownName for a ladder that has no folder of recipes."""
    folder = RECIPES / scale
    if not folder.is_dir():
        raise UnknownName("scale", scale, sorted(each.name for each in RECIPES.iterdir() if each.is_dir()))
    return [Rung.read(path) for path in sorted(folder.glob("*.yaml"))]
