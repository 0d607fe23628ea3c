"""A merge recipe in mergekit's schema, read strictly: each key is known, each refusal names the place. Knows no method and no model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from math import isfinite
from pathlib import Path
from typing import Any, Literal

from asterism.core.errors import SettingsError, UnknownName, UnsupportedError
from asterism.core.reading import TOP, begun, each, keys, read_yaml, text, told, under
from asterism.core.storage import digest_of
from asterism.merge.references import Reference

Scalar = bool | int | float | str
DTYPES = ("bfloat16", "float16", "float32", "float64")
"""What `dtype` and `out_dtype` may say, with or without `torch.` before it."""


@dataclass(frozen=True)
class Rule:
    """One value of a parameter (a tuple is a gradient over the layers) and the tensors it is for."""

    value: Scalar | tuple[Scalar, ...]
    filter: str | None
    """Part of the tensor's name; None for all tensors."""

    def matches(self, name: str) -> bool:
        """Whether the rule is for the tensor of that name."""
        return self.filter is None or self.filter in name


@dataclass(frozen=True)
class Parameters:
    """One `parameters` block. Of a parameter's rules the first that matches a tensor holds."""

    place: str
    rules: Mapping[str, tuple[Rule, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Input:
    """One model of a slice and which of its layers."""

    place: str
    model: Reference
    layers: tuple[int, int] | None
    """First layer and the one after the last; None for all."""
    parameters: Parameters


@dataclass(frozen=True)
class Slice:
    """Consecutive layers of the output and the models they are merged from. A list of `models` is one slice of all layers."""

    place: str
    sources: tuple[Input, ...]
    base: Reference | None
    parameters: Parameters


@dataclass(frozen=True)
class TokenRule:
    """Where one token's embedding comes from; `force` replaces also the rows of models that know the token."""

    donor: Reference | None = None
    row: int | None = None
    """Row of the donor to take; else that of `token`, else that of the token itself."""
    token: str | None = None
    zero: bool = False
    force: bool = False

    @property
    def says(self) -> bool:
        """Whether it names a source at all; else the token is only added."""
        return self.zero or self.donor is not None


@dataclass(frozen=True)
class TokenizerRule:
    """Which vocabulary the output has: all tokens of all models, the base's, or a named model's."""

    source: Literal["union", "base"] | Reference = "union"
    tokens: Mapping[str, TokenRule] = field(default_factory=dict)
    multiple: int | None = None
    """The rows of the embedding are padded to a multiple of this."""


@dataclass(frozen=True)
class Recipe:
    """A whole recipe. Use `Recipe.read` or `Recipe.of`, which check it."""

    merge_method: str
    slices: tuple[Slice, ...]
    base_model: Reference | None
    parameters: tuple[Parameters, ...]
    """The module's and the recipe's own block, the nearer one first."""
    dtype: str | None
    out_dtype: str | None
    tokenizer: TokenizerRule | None
    chat_template: str | None
    content: Mapping[str, Any] = field(compare=False, repr=False)
    """The recipe as it was given, for cards and digests."""

    @classmethod
    def read(cls, path: str | Path) -> Recipe:
        """Read a YAML (or JSON) file. A key that stands twice in one mapping is refused."""
        return cls.of(read_yaml(path))

    @classmethod
    def of(cls, content: Any) -> Recipe:
        """Check a mapping in mergekit's schema.

        Raises UnknownName for an unknown key anywhere, SettingsError for a value that cannot be meant, UnsupportedError for what
        mergekit does (or passes over) and we do not: several modules, override_architecture, residual_weight.
        """
        known = ("merge_method", "base_model", *_PARTS, "parameters", "dtype", "out_dtype", *_TOKENS, "chat_template")
        read = keys(content, TOP, known, ("merge_method",))
        base = Reference.of(read["base_model"], "base_model") if "base_model" in read else None
        slices, of_module = _slices(read, base)
        return cls(
            merge_method=text(read["merge_method"], "merge_method"),
            slices=slices,
            base_model=base,
            parameters=(*of_module, _parameters(read.get("parameters"), "parameters")),
            dtype=_dtype(read.get("dtype"), "dtype"),
            out_dtype=_dtype(read.get("out_dtype"), "out_dtype"),
            tokenizer=_tokenizer(read),
            chat_template=text(read["chat_template"], "chat_template") if "chat_template" in read else None,
            content=content,
        )

    @classmethod
    def given(cls, recipe: Recipe | Mapping[str, Any] | str | Path) -> Recipe:
        """A recipe however it is given: as it is, as a mapping, as a file."""
        if isinstance(recipe, Recipe):
            return recipe
        return cls.read(recipe) if isinstance(recipe, str | Path) else cls.of(recipe)

    @property
    def models(self) -> tuple[Reference, ...]:
        """Every model whose weights are merged, each once, in the recipe's order; a model's number is its place here."""
        return tuple(dict.fromkeys(source.model for part in self.slices for source in part.sources))

    @property
    def donor(self) -> Reference:
        """The model whose config and tokenizer the output takes: the base (which slices need not merge), else the first."""
        return self.base_model or self.models[0]

    @property
    def whole(self) -> bool:
        """Whether whole models are merged, layer by layer; else layers are put together slice by slice."""
        return all(source.layers is None for part in self.slices for source in part.sources)

    @property
    def digest(self) -> str:
        """SHA-256 of the recipe as it was given."""
        return digest_of(self.content)

    def blocks(self, part: Slice, source: Input | None = None) -> tuple[Parameters, ...]:
        """The parameter blocks that hold for a slice, or for one model of it; those before win over those after."""
        return (*([source.parameters] if source else []), part.parameters, *self.parameters)


_PARTS = ("models", "slices", "modules")
_TOKENS = ("tokenizer_source", "tokenizer")


def _slices(read: Mapping[str, Any], base: Reference | None, place: str = TOP) -> tuple[tuple[Slice, ...], tuple[Parameters, ...]]:
    """The slices of a recipe, or of its one module, and the module's own parameters."""
    parts = _PARTS if place == TOP else _PARTS[:2]
    given = [key for key in parts if key in read]
    if len(given) != 1:
        met = " and ".join(given) or "none of them"
        raise SettingsError(f"{begun(place)} holds one of {', '.join(parts)}.", met=met, mend="use models to merge whole models")
    if given == ["modules"]:
        return _module(read["modules"], base)
    if given == ["models"]:
        return (_of_models(read["models"], under(place, "models"), base),), ()
    return tuple(each(read["slices"], under(place, "slices"), lambda value, where: _slice(value, where, base))), ()


def _module(value: Any, base: Reference | None) -> tuple[tuple[Slice, ...], tuple[Parameters, ...]]:
    named = keys(value, "modules", None)
    if list(named) != ["default"]:
        odd = next((name for name in named if name != "default"), None)
        met = f"modules.{odd}" if odd else "modules without default"
        mend = "merge language models, whose one module is named default, or drop `modules` and write models or slices"
        raise UnsupportedError("Merging by modules is not supported.", met=met, mend=mend)
    place = "modules.default"
    read = keys(named["default"], place, ("models", "slices", "parameters"))
    return _slices(read, base, place)[0], (_parameters(read.get("parameters"), under(place, "parameters")),)


def _of_models(value: Any, place: str, base: Reference | None) -> Slice:
    """A list of models as a slice of all layers; a base that is not listed comes last, as in mergekit."""
    sources = list(each(value, place, lambda entry, where: _input(entry, where, ranged=False)))
    if base is not None and base not in [source.model for source in sources]:
        sources.append(Input("base_model", base, None, Parameters("base_model")))
    return Slice(place, _apart(sources, place), base, Parameters(place))


def _slice(value: Any, place: str, base: Reference | None) -> Slice:
    read = keys(value, place, ("sources", "base_model", "residual_weight", "parameters"), ("sources",))
    if "residual_weight" in read:
        mend = "remove it; mergekit reads it and passes it over"
        raise UnsupportedError("residual_weight is not supported.", met=f"{place}: {read['residual_weight']!r}", mend=mend)

    named = each(read["sources"], under(place, "sources"), lambda entry, where: _input(entry, where, ranged=True))
    sources = _apart(named, place)
    lengths = {end - start for start, end in (source.layers for source in sources if source.layers)}
    if len(lengths) > 1:
        met = ", ".join(f"{source.model}: {list(source.layers or ())}" for source in sources)
        raise SettingsError(f"The sources of {place} have different numbers of layers.", met=met, mend="give ranges of equal length")
    if "base_model" in read:
        base = Reference.of(read["base_model"], under(place, "base_model"))
    return Slice(place, sources, base, _parameters(read.get("parameters"), under(place, "parameters")))


def _input(value: Any, place: str, *, ranged: bool) -> Input:
    needed = ("model", "layer_range") if ranged else ("model",)
    read = keys(value, place, (*needed, "parameters"), needed)
    layers = _range(read["layer_range"], under(place, "layer_range")) if ranged else None
    model = Reference.of(read["model"], under(place, "model"))
    return Input(place, model, layers, _parameters(read.get("parameters"), under(place, "parameters")))


def _apart(sources: Sequence[Input] | Iterator[Input], place: str) -> tuple[Input, ...]:
    met: set[Reference] = set()
    for source in (sources := tuple(sources)):
        if source.model in met:
            raise SettingsError(f"A model stands twice in {place}.", met=str(source.model), mend="name each model once and add its weights")
        met.add(source.model)
    return sources


def _range(value: Any, place: str) -> tuple[int, int]:
    if isinstance(value, list | tuple) and len(value) == 2 and all(type(end) is int for end in value) and 0 <= value[0] < value[1]:
        return value[0], value[1]
    raise SettingsError(f"{place} is not a range of layers.", met=repr(value), mend="first layer and the one after the last, as in [0, 12]")


def _parameters(value: Any, place: str) -> Parameters:
    read = {} if value is None else keys(value, place, None, empty=True)
    return Parameters(place, {name: _rules(setting, under(place, name)) for name, setting in read.items()})


def _rules(value: Any, place: str) -> tuple[Rule, ...]:
    """A scalar, a gradient, a mapping of value and filter, or a list of such mappings."""
    conditional = isinstance(value, list | tuple) and any(isinstance(entry, Mapping) for entry in value)
    if not conditional and not isinstance(value, Mapping):
        return (Rule(_value(value, place), None),)
    rules = tuple(each(value, place, _rule)) if conditional else (_rule(value, place),)
    for number, rule in enumerate(rules[:-1]):
        if rule.filter is None:
            mend = "the first rule that matches holds: put the one without a filter last"
            raise SettingsError(f"{place}[{number + 1}] is never read.", met=f"{place}[{number}] matches every tensor", mend=mend)
    return rules


def _rule(value: Any, place: str) -> Rule:
    read = keys(value, place, ("value", "filter"), ("value",))
    part = text(read["filter"], under(place, "filter")) if "filter" in read else "*"
    return Rule(_value(read["value"], under(place, "value")), None if part == "*" else part)


def _value(value: Any, place: str) -> Scalar | tuple[Scalar, ...]:
    if isinstance(value, list | tuple):
        return tuple(each(value, place, _scalar))
    return _scalar(value, place)


def _scalar(value: Any, place: str) -> Scalar:
    if isinstance(value, bool | int | str) or (isinstance(value, float) and isfinite(value)):
        return value
    mend = "give a number, true or false, a list of them over the layers, or a list of `filter` and `value` pairs"
    raise SettingsError(f"{place} is not a value.", met=told(value), mend=mend)


def _tokenizer(read: Mapping[str, Any]) -> TokenizerRule | None:
    if all(key in read for key in _TOKENS):
        raise SettingsError("tokenizer_source and tokenizer say the same.", met="both", mend="keep one: tokenizer: {source: ...}")
    if "tokenizer_source" in read:
        return TokenizerRule(_vocabulary(read["tokenizer_source"], "tokenizer_source"))
    if "tokenizer" not in read:
        return None
    own = keys(read["tokenizer"], "tokenizer", ("source", "tokens", "pad_to_multiple_of"), empty=True)
    multiple, tokens = own.get("pad_to_multiple_of"), own.get("tokens") or {}
    if multiple is not None and (type(multiple) is not int or multiple < 1):
        raise SettingsError("tokenizer.pad_to_multiple_of is a whole number, at least 1.", met=repr(multiple), mend="e.g. 64")
    place = "tokenizer.tokens"
    named = keys(tokens, place, None, empty=True)
    rules = {name: _token(value, f"{place}[{name!r}]") for name, value in named.items()}
    return TokenizerRule(_vocabulary(own.get("source", "union"), "tokenizer.source"), rules, multiple)


def _vocabulary(value: Any, place: str) -> Literal["union", "base"] | Reference:
    """A bare word near `union` or `base` is one of them misspelt, unless a folder is called so."""
    if value in (words := ("union", "base")):
        return value
    bare = isinstance(value, str) and value.isalpha() and not Path(value).is_dir()
    if bare and get_close_matches(value.casefold(), words, n=1, cutoff=0.75):
        raise UnknownName(f"source for {place}", value, words)
    return Reference.of(value, place)


def _token(value: Any, place: str) -> TokenRule:
    read = keys({} if value is None else value, place, ("source", "force"), empty=True)
    force, source, where = read.get("force", False), read.get("source"), under(place, "source")
    if not isinstance(force, bool):
        raise SettingsError(f"{under(place, 'force')} is true or false.", met=repr(force), mend="force: true")
    if source is None:
        if force:
            raise SettingsError(f"{place} forces a row and names no source.", met="force: true", mend="add source: MODEL or {kind: zero}")
        return TokenRule()
    if not isinstance(source, Mapping) or "kind" not in source:
        return TokenRule(donor=Reference.of(source, where), force=force)
    kinds = {"zero": ("kind",), "model_token": ("kind", "model", "token_id", "token")}
    kind = text(source["kind"], under(where, "kind"))
    if kind not in kinds:
        raise UnknownName(f"kind in {where}", kind, kinds)
    if kind == "zero":
        keys(source, where, kinds["zero"])
        return TokenRule(zero=True, force=force)
    own = keys(source, where, kinds["model_token"], ("model",))
    row, token = own.get("token_id"), own.get("token")
    if (row is None) == (token is None) or (row is not None and (type(row) is not int or row < 0)) or not isinstance(token, str | None):
        met = f"token_id {row!r}, token {token!r}"
        raise SettingsError(f"{where} names one token of the model.", met=met, mend="give token_id (a row) or token (a text)")
    return TokenRule(donor=Reference.of(own["model"], under(where, "model")), row=row, token=token, force=force)


def _dtype(value: Any, place: str) -> str | None:
    if value is None:
        return None
    name = text(value, place).removeprefix("torch.")
    if name not in DTYPES:
        raise UnknownName(f"dtype for {place}", value, DTYPES)
    return name
