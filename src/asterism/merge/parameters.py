"""Which value each parameter of a method has for a tensor: mergekit's precedence, filters and gradients, without its silences."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from asterism.core.errors import SettingsError, UnknownName
from asterism.merge.recipe import Input, Parameters, Recipe, Rule, Slice

if TYPE_CHECKING:
    from asterism.merge.methods.method import Method, Parameter


def place_in_stack(layer: int, layers: int) -> float:
    """t of a layer, where gradients are read: 0 at the first of `layers`, 1 at the last, 1 where there is one."""
    return layer / (layers - 1) if layers > 1 else 1.0


def base_of(method: Method, part: Slice) -> int | None:
    """Place of the base among a slice's sources; None where there is none or the method knows no base."""
    if method.base == "none":
        return None
    return next((place for place, source in enumerate(part.sources) if source.model == part.base), None)


def resolve(
    method: Method, recipe: Recipe, part: Slice, name: str, inputs: Sequence[str], t: float
) -> tuple[dict[str, Any], tuple[dict[str, Any], ...]]:
    """The parameters that the recipe gives for one tensor: the method's own, and each source's (none for a base outside the stack).

    name: of the output tensor, which filters of the method's parameters look at; inputs: the tensor's name in each source, which
    filters of per-model parameters look at. t: place in the layers, 0 outside them. Of the blocks source > slice > module > recipe the
    first that has a rule for the tensor gives the value; of a block's rules the first that matches. A list is a gradient: linear
    between its numbers, a step between its truth values. Parameters that the recipe does not give are left out.
    Raises SettingsError for a parameter that must be given and is not.
    """
    shared = dict(_given(method, "method", recipe.blocks(part), name, t, name))
    base = base_of(method, part) if method.stack != "models" else None
    each = tuple(
        {} if place == base else dict(_given(method, "model", recipe.blocks(part, source), own, t, f"{own} of {source.model}"))
        for place, (source, own) in enumerate(zip(part.sources, inputs, strict=True))
    )
    return shared, each


def check(method: Method, recipe: Recipe) -> None:
    """Refuse what no tensor would read: parameters that the method does not have, wrong values, values where nothing looks for them.

    Raises UnknownName (with the nearest name) or SettingsError, naming the place.
    """
    for part in recipe.slices:
        for block in recipe.blocks(part):
            _check_block(method, block)
        base = base_of(method, part) if method.stack != "models" else None
        for place, source in enumerate(part.sources):
            _check_block(method, source.parameters)
            _check_source(method, source, place == base)


def check_filters(method: Method, recipe: Recipe, outputs: Iterable[str], inputs: Iterable[str]) -> None:
    """SettingsError for a filter that matches no tensor of the whole merge: of the output, or of any model for per-model parameters."""
    names = {"method": set(outputs), "model": set(inputs)}
    blocks = {
        block.place: block for part in recipe.slices for source in part.sources for block in recipe.blocks(part, source) if block.rules
    }
    for block in blocks.values():
        for name, rules in block.rules.items():
            for number, rule in enumerate(rules):
                if rule.filter is not None and not any(rule.matches(each) for each in names[method.parameters[name].scope]):
                    met = f"{rule.filter!r} in {block.place}.{name}" + (f"[{number}]" if len(rules) > 1 else "")
                    mend = f"use a part of a tensor's name, such as {min(names['method'])!r}"
                    raise SettingsError("A filter matches no tensor.", met=met, mend=mend)


def _given(method: Method, scope: str, blocks: Sequence[Parameters], name: str, t: float, of: str) -> Iterator[tuple[str, Any]]:
    for parameter in method.parameters.values():
        if parameter.scope != scope:
            continue
        rule = next((rule for block in blocks for rule in block.rules.get(parameter.name, ()) if rule.matches(name)), None)
        if rule is not None:
            yield parameter.name, _valued(method, parameter, rule, t)
        elif parameter.required:
            mend = f"give {parameter.range}, without a filter to hold for every tensor: {parameter.help}"
            raise SettingsError(f"{method.name} needs {parameter.name}.", met=f"none for {of}", mend=mend)


def _valued(method: Method, parameter: Parameter, rule: Rule, t: float) -> float | int | bool:
    if not isinstance(rule.value, tuple):
        return parameter.read(rule.value, method.name)
    values = [parameter.read(value, method.name) for value in rule.value]
    at = t * (len(values) - 1)
    below = int(at)
    if parameter.kind == "bool":
        return values[below]
    above = min(below + 1, len(values) - 1)
    return parameter.read((1 - (at - below)) * values[below] + (at - below) * values[above], method.name)


def _check_block(method: Method, block: Parameters) -> None:
    for name, rules in block.rules.items():
        if name not in method.parameters:
            raise UnknownName(f"parameter of {method.name} in {block.place}", name, method.parameters)
        parameter = method.parameters[name]
        for value in (value for rule in rules for value in (rule.value if isinstance(rule.value, tuple) else (rule.value,))):
            try:
                parameter.read(value, method.name)
            except SettingsError as error:
                wrong = f"{block.place}.{name} takes {parameter.range} in {method.name}."
                raise SettingsError(wrong, met=error.met, mend=parameter.help) from None


def _check_source(method: Method, source: Input, unread: bool) -> None:
    for name in source.parameters.rules:
        place = f"{source.parameters.place}.{name}"
        if unread:
            mend = "remove it: only what the other models change against the base is weighed"
            raise SettingsError(f"{place} is never read.", met=f"{source.model} is the base of {method.name}", mend=mend)
        if method.parameters[name].scope == "method":
            mend = "put it under the recipe's own parameters, or the slice's"
            raise SettingsError(f"{place} is never read.", met=f"{name} has one value for all models in {method.name}", mend=mend)
