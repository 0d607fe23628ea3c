"""What keeps a request's mixture apart from others': checked where requests come in, and part of what its keys are cached under.

vLLM's prefix cache knows tokens, not mixtures: without a salt, keys that one mixture made would answer for another. `install` makes
vLLM's own input processing see to it, in the engine and under `vllm serve` alike (entry point `vllm.general_plugins`).
"""

# pyright: reportMissingImports=false
# vLLM is no dependency: users bring the build for their machine.
from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from asterism.compose.plan import Plan
from asterism.core.errors import AsterismError, DataError, SettingsError, StorageError
from asterism.core.storage import read_json
from asterism.models.anatomy import Anatomy, anatomy_of, skeleton
from asterism.models.library import MANIFEST
from asterism.serve.vllm.mixing import WHOLE
from asterism.serve.vllm.payload import FIELD, composition_from, is_even, salt_of

CONFIG = "asterism"
"""Our part of vLLM's `additional_config`: {"library": FOLDER}."""
KNOWN: dict[Path, Callable[[], Iterable[str]]] = {}
"""Library -> its specialists as an engine in this process calls them; of others the manifest tells."""


def library_of(config: Any) -> Path:
    """The library that vLLM was told of. DataError where it was told of none."""
    given = (config.additional_config or {}).get(CONFIG) if isinstance(config.additional_config, dict) else None
    if not isinstance(given, dict) or not isinstance(given.get("library"), str):
        mend = '--additional-config \'{"asterism": {"library": "FOLDER"}}\''
        raise DataError("vLLM was not told which library to serve.", met=repr(given), mend=mend)
    return Path(given["library"])


def checked(request: Any, anatomy: Anatomy, known: Iterable[str], *, graphs: bool = False) -> Any:
    """The request with its mixture's salt. An AsterismError for a mixture that the workers could not run: nothing may fail there.

    `graphs`: vLLM replays captured graphs, in which a specialist's weight is one number.
    """
    params = request.sampling_params
    payload = ((params.extra_args or {}) if params is not None else {}).get(FIELD)
    if payload is not None:
        made = composition_from(payload, anatomy.hidden_size, known)
        plan = Plan(anatomy, [made.mixture], made.settings, torch.empty(0))
        if not is_even(made):
            if graphs:
                mend = "start vLLM with enforce_eager, or give each specialist one weight"
                raise SettingsError("Weights that differ by node do not go with vLLM's graphs.", met="such a mixture", mend=mend)
            for name in plan.parameters:
                plan.terms(name, lambda *_: WHOLE)
        request.cache_salt = salt_of(made, request.cache_salt)
    return request


def install() -> None:
    """Have vLLM's input processor check and salt every request for a library of ours; again makes no difference."""
    from vllm.exceptions import VLLMValidationError
    from vllm.v1.engine.input_processor import InputProcessor

    original = getattr(InputProcessor.process_inputs, "original", InputProcessor.process_inputs)
    anatomies: dict[int, Anatomy] = {}

    def process_inputs(self: Any, *args: Any, **kwargs: Any) -> Any:
        request, config = original(self, *args, **kwargs), self.vllm_config
        if not isinstance(config.additional_config, dict) or CONFIG not in config.additional_config:
            return request
        if id(config) not in anatomies:
            anatomies[id(config)] = anatomy_of(skeleton(config.model_config.hf_config))
        root = library_of(config)
        try:
            known = KNOWN[root]() if root in KNOWN else names_of(root)
            return checked(request, anatomies[id(config)], known, graphs=graphs(config))
        except AsterismError as error:
            raise VLLMValidationError(str(error), parameter=FIELD) from None

    process_inputs.original = original  # pyright: ignore[reportFunctionMemberAccess]
    InputProcessor.process_inputs = process_inputs


def graphs(config: Any) -> bool:
    """Whether a vLLM of this config replays captured graphs."""
    return getattr(config.compilation_config.cudagraph_mode, "name", "NONE") != "NONE"


def compiled(config: Any) -> bool:
    """Whether a vLLM of this config runs a compiled model or captured graphs: what mixes is then settled at its start."""
    return getattr(config.compilation_config.mode, "name", "NONE") != "NONE" or graphs(config)


def plugin() -> None:
    """Entry point of vLLM's general plugins: nothing for a vLLM that serves no library of ours."""
    install()


def names_of(root: Path) -> list[str]:
    """The specialists of a library, from its manifest alone."""
    manifest = read_json(root / MANIFEST)
    try:
        return [entry["name"] for entry in manifest["specialists"]]
    except (KeyError, TypeError):
        raise StorageError("The library's manifest is not usable.", met=root / MANIFEST, mend="create the library again") from None
