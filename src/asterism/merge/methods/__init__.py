"""Every merge method by its recipe name: mergekit 0.1.5's twenty and ours. A new method is a function and a line here."""

from __future__ import annotations

from asterism.core.errors import UnknownName, UnsupportedError
from asterism.merge.methods import combinations as c
from asterism.merge.methods import elementwise as e
from asterism.merge.methods import sparse as s
from asterism.merge.methods.families import Combination, Elementwise, Sparse
from asterism.merge.methods.method import Method, Parameter, Told

_MASK = Parameter("int8_mask", "bool", "method", False, Told("mergekit's switch to save memory; nothing changes here"), idle=True)
_DENSITY = Parameter("density", "float", "model", 1.0, Told("as in mergekit, nothing is left out here whatever it says", 0, 1), idle=True)
_RESCALE = Parameter("rescale", "bool", "method", False, Told("as in mergekit, nothing is left out here, so nothing rescaled"), idle=True)

_ALL: tuple[Method, ...] = (
    Combination(c.linear, "Linear", "arXiv:2203.05482", "models", "none", blind=True),
    Combination(c.uniform, "Uniform soup", "arXiv:2203.05482", "models", "none", blind=True),
    Combination(c.lerp, "LERP", "linear interpolation", "models", "optional", 2, 2, ordered=True, blind=True),
    Combination(c.slerp, "SLERP", "Shoemake 1985", "models", "required", 2, 2),
    Combination(c.nuslerp, "NuSLERP", "mergekit", "either", "optional", 2, 2, split=c.vectors),
    Combination(c.multislerp, "Multi-SLERP", "goddard.blog/posts/multislerp-wow-what-a-cool-idea", "either", "optional"),
    Combination(c.karcher, "Karcher mean", "arXiv:2603.04972", "models", "none"),
    Combination(
        c.task_arithmetic, "Task arithmetic", "arXiv:2212.04089", "deltas", "required", 0, idle=(_DENSITY, _RESCALE, _MASK), blind=True
    ),
    Sparse(s.ties, "TIES", "arXiv:2306.01708", "deltas", "required", 0, idle=(_MASK,)),
    Sparse(s.dare_linear, "DARE, linear", "arXiv:2311.03099", "deltas", "required", 0, idle=(_MASK,)),
    Sparse(s.dare_ties, "DARE with TIES", "arXiv:2311.03099", "deltas", "required", 0, idle=(_MASK,)),
    Sparse(s.breadcrumbs, "Model Breadcrumbs", "arXiv:2312.06795", "deltas", "required", 0, idle=(_MASK,)),
    Sparse(s.breadcrumbs_ties, "Model Breadcrumbs with TIES", "arXiv:2312.06795", "deltas", "required", 0, idle=(_MASK,)),
    Sparse(s.della, "DELLA", "arXiv:2406.11617", "deltas", "required", 0, idle=(_MASK,)),
    Sparse(s.della_linear, "DELLA, linear", "arXiv:2406.11617", "deltas", "required", 0, idle=(_MASK,)),
    Elementwise(e.sce, "SCE", "arXiv:2408.07990", "deltas", "required", 0, idle=(_MASK,)),
    Elementwise(e.ram, "RAM", "arXiv:2601.13572", "deltas", "required", 0, pointwise=True),
    Elementwise(e.ramplus_tl, "RAM+, tensor-local", "arXiv:2601.13572", "deltas", "required", 0),
    Combination(c.model_stock, "Model Stock", "arXiv:2403.19522", "deltas", "required", 2, split=c.filters),
    Elementwise(e.nearswap, "NearSwap", "huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001", "deltas", "required", 1, 1, pointwise=True),
    Elementwise(e.arcee_fusion, "Arcee Fusion", "arcee.ai", "models", "required", 2, 2),
    Combination(c.passthrough, "Passthrough", "mergekit", "models", "none", 1, 1, blind=True),
)

METHODS: dict[str, Method] = {each.name: each for each in _ALL}


_COMMAND = "`asterism merge LIBRARY OUT --method {name}`"
_ELSEWHERE = {
    **dict.fromkeys(
        ("fisher", "regmean", "adamerging"),
        f"it reads texts: {_COMMAND}, or asterism.merge.learned.learned_merge(library, {{name!r}}, texts)",
    ),
    "greedy_soup": f"it reads texts: {_COMMAND}, or asterism.merge.soup.greedy_soup(library, texts)",
    "emr": f"it makes a model of each specialist: {_COMMAND}, or asterism.merge.emr.Emr.build(library)",
}
"""Merges that no recipe can ask for -> where they are."""


def method(name: str) -> Method:
    """The method of that name. Raises UnknownName, offering the nearest; UnsupportedError for a merge that is not made from a recipe."""
    if name in _ELSEWHERE:
        raise UnsupportedError("This merge is not made from a recipe.", met=repr(name), mend=_ELSEWHERE[name].format(name=name))
    if name not in METHODS:
        raise UnknownName("merge method", name, METHODS)
    return METHODS[name]
