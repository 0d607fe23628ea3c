"""What a merge method is: one function on a stack of tensors, what it may be given, and parameters read from its signature."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf, isfinite
from typing import Annotated, Any, Final, Literal, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from asterism.core.errors import DataError, MismatchError, SettingsError, UnknownName
from asterism.core.gram import accumulator, check, not_finite
from asterism.core.sifting import finite

PerModel = float | Sequence[float]
"""A parameter that has a value for each stacked model; one number stands for all."""

Stack = Literal["models", "deltas", "either"]
Base = Literal["required", "optional", "none"]

REQUIRED: Final = object()
"""The default of a parameter that has none."""


@dataclass(frozen=True)
class Told:
    """What a parameter's annotation tells: its help and its range, both ends included."""

    help: str
    low: float = -inf
    high: float = inf


@dataclass(frozen=True)
class Parameter:
    """One parameter of a method, under the name that recipes use."""

    name: str
    kind: Literal["float", "int", "bool"]
    scope: Literal["method", "model"]
    """Whether it has one value, or one for each stacked model."""
    default: object
    told: Told
    idle: bool = False
    """Accepted because mergekit's recipes hold it; it changes nothing here."""

    @property
    def required(self) -> bool:
        return self.default is REQUIRED

    @property
    def help(self) -> str:
        return self.told.help

    @property
    def low(self) -> float:
        return self.told.low

    @property
    def high(self) -> float:
        return self.told.high

    @property
    def range(self) -> str:
        """In words: what values are taken."""
        if self.kind == "bool":
            return "true or false"
        number = "a whole number" if self.kind == "int" else "a number"
        if isfinite(self.low) and isfinite(self.high):
            return f"{number} from {self.low:g} to {self.high:g}"
        return number + (f", at least {self.low:g}" if isfinite(self.low) else f", at most {self.high:g}" if isfinite(self.high) else "")

    def read(self, value: object, method: str) -> float | int | bool:
        """The value as its kind: numbers also from strings such as "1e-4"; bools also from 0 and 1. Raises SettingsError."""
        number = _number(value)
        if self.kind == "bool":
            if isinstance(value, bool) or number in (0, 1):
                return bool(number) if number is not None else bool(value)
        elif number is not None and self.low <= number <= self.high and (self.kind == "float" or number.is_integer()):
            return int(number) if self.kind == "int" else number
        raise SettingsError(f"{method}.{self.name} takes {self.range}.", met=repr(value), mend=self.help)


def _number(value: object) -> float | None:
    """A finite number as such or in a string; a bool is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if isfinite(number) else None


def parameters_of(function: Callable[..., object]) -> dict[str, Parameter]:
    """The parameters that a function's signature tells of: those annotated with a `Told`; python's `lambda_` is `lambda`."""
    hints = get_type_hints(function, include_extras=True)
    found: dict[str, Parameter] = {}
    for argument in inspect.signature(function).parameters.values():
        hint = hints.get(argument.name)
        if get_origin(hint) is not Annotated:
            continue
        kind, told = get_args(hint)
        default = REQUIRED if argument.default is argument.empty else argument.default
        name = argument.name.rstrip("_")
        found[name] = Parameter(
            name, "float" if kind == PerModel else kind.__name__, "model" if kind == PerModel else "method", default, told
        )
    return found


def arguments_for(function: Callable[..., object], bound: Mapping[str, Any]) -> dict[str, Any]:
    """Of parameters by their recipe names, those that a function takes, by their names in python."""
    named = {name.rstrip("_"): name for name in inspect.signature(function).parameters}
    return {named[name]: value for name, value in bound.items() if name in named}


def spread(values: PerModel, count: int) -> tuple[float, ...]:
    """One value a model: `count` of them. Raises MismatchError."""
    spread = tuple(values) if isinstance(values, Sequence) else (float(values),) * count
    if len(spread) != count:
        raise MismatchError(
            "A parameter takes one value a model.", met=f"{len(spread)} values, {count} models", mend="give as many of each"
        )
    return spread


@dataclass(frozen=True)
class Method:
    """A merge method. Its families, in `families.py`, say how its function is carried out.

    The stack holds, by `stack`: "models", the models' own parameters in the recipe's order, but the base first where the method knows a
    base; "deltas", model minus base for every model that is not the base, the result being a delta too; "either", deltas where
    there is a base, else the models.
    """

    function: Callable[..., Any]
    title: str
    source: str
    """A paper or page."""
    stack: Stack
    base: Base
    """Whether a base must be given, may be, or makes no difference."""
    least: int = 1
    """Stacked models, at least; where 0, the base alone is its own merge."""
    most: int | None = None
    idle: tuple[Parameter, ...] = ()
    """Parameters that are accepted and change nothing."""
    ordered: bool = False
    """Without a base, which model comes first makes a difference."""
    blind: bool = False
    """The function does not look at the tensors, only at how many there are."""

    @property
    def name(self) -> str:
        return self.function.__name__

    @cached_property
    def parameters(self) -> dict[str, Parameter]:
        """By recipe name, in the order of the signature."""
        return self._own_parameters() | {each.name: each for each in self.idle}

    def check(self, values: Mapping[str, object]) -> dict[str, Any]:
        """The values as their kinds; where a parameter has a value for each model, also sequences of values.

        Raises UnknownName for a parameter that the method does not have, SettingsError for a value of the wrong type or range.
        """
        return {name: self._read(name, value) for name, value in values.items()}

    def _read(self, name: str, value: object) -> Any:
        if name not in self.parameters:
            raise UnknownName(f"parameter of {self.name}", name, self.parameters)
        parameter = self.parameters[name]
        if parameter.scope == "model" and isinstance(value, list | tuple):
            return tuple(parameter.read(each, self.name) for each in value)
        return parameter.read(value, self.name)

    def bind(self, shared: Mapping[str, object], each: Sequence[Mapping[str, object]]) -> dict[str, Any]:
        """What the function is to be given: every parameter once, checked, with defaults, per-model ones as tuples in stack order.

        each: a model's own values, one mapping a stacked model; they come before `shared`. Also tries the settings together, so that
        those which contradict each other are refused before a tensor is read.
        Raises UnknownName, SettingsError (type, range, missing, contradiction), MismatchError (number of models).
        """
        self.check_count(len(each))
        common, own = self.check(shared), [self.check(values) for values in each]
        for place, values in enumerate(own):
            for name in values:
                if self.parameters[name].scope == "method":
                    met = f"{name} of model {place}"
                    raise SettingsError(
                        f"{self.name}.{name} has one value for all models.", met=met, mend="give it among the method's parameters"
                    )
        bound = {}
        for name, parameter in self.parameters.items():
            if parameter.idle:
                continue
            if parameter.scope == "method":
                bound[name] = self._given(parameter, common.get(name, parameter.default), None)
                continue
            usual = spread(common[name], len(each)) if name in common else (parameter.default,) * len(each)
            bound[name] = tuple(self._given(parameter, own[i].get(name, usual[i]), i) for i in range(len(each)))
        if each:
            self._try(len(each), bound)
        return bound

    def _given(self, parameter: Parameter, value: object, place: int | None) -> Any:
        if value is REQUIRED:
            whose = "" if place is None else f" for model {place}"
            raise SettingsError(f"{self.name} needs {parameter.name}{whose}.", met="none", mend=f"{parameter.range}: {parameter.help}")
        return value

    def check_count(self, count: int) -> None:
        """Raise MismatchError unless the method takes that many stacked models."""
        if self.least <= count and (self.most is None or count <= self.most):
            return
        number = str(self.least) if self.least == self.most else f"{self.least} to {self.most}" if self.most else f"at least {self.least}"
        beside = " besides the base" if self.stack == "deltas" else ""
        raise MismatchError(
            f"{self.name} merges {number} model{'' if number == '1' else 's'}{beside}.",
            met=count,
            mend="give as many, or choose another method",
        )

    def into(
        self,
        out: Tensor,
        tensors: Sequence[Tensor],
        base: Tensor | None = None,
        *,
        bound: Mapping[str, Any],
        keys: Sequence[int] = (),
        name: str = "",
    ) -> None:
        """out <- the merge of one tensor of every stacked model, in its family's fastest way; no more than blocks are copied wide.

        tensors: the raw tensors [K of *shape], of any floating dtypes, in stack order; base: where given, the stack is
        tensor - base and the merged delta is added to it. bound: from `bind`; keys: a `stream_key` a model, for methods that draw.
        Computed in float32 (float64 where an input is), rounded once to out's dtype. out: contiguous, overlapping no input.
        Raises MismatchError (shapes, devices, keys), UnsupportedError (dtypes), DataError for NaN or Inf in the tensor called `name`;
        out then holds nothing of use.
        """
        self._check_base(base)
        check((out, *tensors), base)
        tensors, base = tuple(tensor.contiguous() for tensor in tensors), None if base is None else base.contiguous()
        if base is not None and not tensors:
            out.copy_(base)
        elif out.numel():
            with torch.no_grad():
                self._into(out, tensors, base, bound, tuple(keys), name)
            if (self.blind or out.dtype == torch.float16) and not finite(out):
                if not all(map(finite, tensors if base is None else (base, *tensors))):
                    raise not_finite(name)
                met = f"{name or 'one of the tensors'}, {out.dtype}"
                raise DataError("The merge is too large for its dtype.", met=met, mend="another dtype, or smaller weights")

    def on_stack(self, stack: Tensor, base: Tensor | None = None, *, keys: Sequence[int] = (), **parameters: object) -> Tensor:
        """The method as a function: stack [K, *shape] as it is told in the class -> [*shape]; with a base, the result is added to it.

        parameters: by recipe name, per-model ones as one value or K. The stack's dtype, computed in float32 or wider.
        """
        self._check_base(base)
        dtype = accumulator(stack)
        wide = stack.to(dtype)
        out = torch.zeros(wide.shape[1:], dtype=dtype, device=stack.device)
        bound = self.bind(parameters, [{}] * len(stack))
        if len(stack):
            self._stacked_into(out, wide, bound, tuple(keys))
        return (out if base is None else out + base.to(dtype)).to(stack.dtype)

    def _check_base(self, base: Tensor | None) -> None:
        if base is not None and self.stack == "models":
            raise MismatchError(f"{self.name} merges models, no deltas.", met="a base beside them", mend="the base as the first of them")

    def keeps(self, count: int, bound: Mapping[str, Any], *, based: bool) -> bool:
        """Whether `count` equal tensors merge to themselves, so that nothing need be computed.

        based: what is merged is deltas, from a base that equals them.
        """
        return based or count > 1

    # What a family provides.

    def _own_parameters(self) -> dict[str, Parameter]:
        return parameters_of(self.function)

    def _try(self, count: int, bound: Mapping[str, Any]) -> None:
        """Raise where settings contradict each other."""

    def _into(
        self, out: Tensor, tensors: tuple[Tensor, ...], base: Tensor | None, bound: Mapping[str, Any], keys: tuple[int, ...], name: str
    ) -> None:
        raise NotImplementedError

    def _stacked_into(self, out: Tensor, stack: Tensor, bound: Mapping[str, Any], keys: tuple[int, ...]) -> None:
        self._into(out, stack.unbind(0), None, bound, keys, "")
