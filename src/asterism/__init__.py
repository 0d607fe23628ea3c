"""asterism: one generalist, several specialists, and the model each query needs.

    from asterism import Constellation, Library, compose, read_corpus

    library = Library.open("library")
    constellation = Constellation.load("library/constellation", library)
    mixture = constellation.mixture("Is a surgeon liable for ...", top_k=3)
    model = compose(library, mixture, layers=4)

These names are the front door; everything else is imported from its module. Each is loaded when first used, so that
`import asterism` loads neither torch nor transformers.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asterism.compose.build import compose as compose
    from asterism.compose.composer import Composer as Composer
    from asterism.compose.settings import CompositionSettings as CompositionSettings
    from asterism.constellation.diagnosis import diagnose as diagnose
    from asterism.constellation.index import Constellation as Constellation
    from asterism.constellation.mixture import Mixture as Mixture
    from asterism.constellation.settings import IndexSettings as IndexSettings
    from asterism.constellation.settings import MixtureSettings as MixtureSettings
    from asterism.core.corpus import Probe as Probe
    from asterism.core.corpus import read_corpus as read_corpus
    from asterism.core.errors import AsterismError as AsterismError
    from asterism.evaluate.run import evaluate as evaluate
    from asterism.evaluate.settings import EvaluationSettings as EvaluationSettings
    from asterism.fuse.build import fuse as fuse
    from asterism.fuse.settings import FusionSettings as FusionSettings
    from asterism.merge.library import merge as merge
    from asterism.merge.run import merge_recipe as merge_recipe
    from asterism.models.library import Library as Library
    from asterism.models.settings import TrainingSettings as TrainingSettings
    from asterism.models.training import train as train
    from asterism.route.build import route as route
    from asterism.route.settings import RouterSettings as RouterSettings

_HOME = {
    "AsterismError": "core.errors",
    "Composer": "compose.composer",
    "CompositionSettings": "compose.settings",
    "Constellation": "constellation.index",
    "EvaluationSettings": "evaluate.settings",
    "FusionSettings": "fuse.settings",
    "IndexSettings": "constellation.settings",
    "Library": "models.library",
    "Mixture": "constellation.mixture",
    "MixtureSettings": "constellation.settings",
    "Probe": "core.corpus",
    "RouterSettings": "route.settings",
    "TrainingSettings": "models.settings",
    "compose": "compose.build",
    "diagnose": "constellation.diagnosis",
    "evaluate": "evaluate.run",
    "fuse": "fuse.build",
    "merge": "merge.library",
    "merge_recipe": "merge.run",
    "read_corpus": "core.corpus",
    "route": "route.build",
    "train": "models.training",
}

__all__ = sorted(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]


class _Verb(ModuleType):
    """A layer that shares its name with its main function: `asterism.compose(...)` calls `asterism.compose.build.compose`."""

    def __call__(self, *args: Any, **values: Any) -> Any:
        verb = self.__name__.rpartition(".")[2]
        return getattr(import_module(f"{__name__}.{_HOME[verb]}"), verb)(*args, **values)


class _Door(ModuleType):
    """Whichever way `asterism.compose`, `evaluate`, `fuse`, `merge` and `route` come to be loaded, they can be both entered and called."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _HOME and isinstance(value, ModuleType):
            value.__class__ = _Verb
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Door


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version(__name__)
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; the front door offers {', '.join(__all__)}")
    if _HOME[name].startswith(f"{name}."):
        return import_module(f"{__name__}.{name}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__doc__", "__version__"]
