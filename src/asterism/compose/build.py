"""One mixture, one model of its own: composed once, then nothing of the library is held."""

from __future__ import annotations

from typing import Any

from asterism.compose.composer import write
from asterism.compose.plan import Plan
from asterism.compose.settings import CompositionSettings
from asterism.constellation.mixture import Mixture
from asterism.models.library import Library
from asterism.models.types import PreTrainedModel


def compose(library: Library, mixture: Mixture, settings: CompositionSettings | None = None, **changes: Any) -> PreTrainedModel:
    """The model that a mixture asks for (Eq. 9), independent of the library: generate with it, train it, save it.

    `changes` are fields of CompositionSettings, e.g. `layers=4`. Specialists' tensors are read one parameter at a time.
    Raises UnknownName, MismatchError, SettingsError as `Composer.materialise`.
    """
    settings = (settings or CompositionSettings()).changed(**changes)
    model = library.fresh_model()
    parameters = dict(model.named_parameters())
    plan = Plan(library.anatomy, [mixture], settings, next(iter(parameters.values())))
    for name in plan.parameters:
        terms = plan.terms(name, library.change)
        if terms is not None:
            write(parameters[name], terms, lambda name=name: library.tensor(name), library.anatomy.output_axes[name])
    return model.requires_grad_(True)
