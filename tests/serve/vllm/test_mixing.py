"""What every token of a step runs under, against matrices that are composed whole."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from asterism.compose.composer import write
from asterism.compose.plan import Plan
from asterism.compose.settings import CompositionSettings
from asterism.constellation.mixture import Mixture
from asterism.core.errors import UnknownName, UnsupportedError
from asterism.models.changes import LowRank
from asterism.serve.jobs import Composition
from asterism.serve.vllm.cuts import cuts_of
from asterism.serve.vllm.mixing import Coefficients, Pass, passes_of, summed, summed_whole
from asterism.serve.vllm.sites import Head, Matrix, Parameter, Step, Vectors, local_tail, thin
from tests import tiny
from tests.serve.vllm.fakes import FakeShard

D = tiny.HIDDEN
CPU = torch.device("cpu")


def nodes(*names: str, seed: int = 0) -> Mixture:
    weights = torch.rand(len(names), D, generator=torch.Generator().manual_seed(seed))
    return Mixture(names, weights / weights.sum(0), weights.mean(1))


EVEN = {
    "none": None,
    "alone": Composition(Mixture.fixed({"legal": 1.0}, D)),
    "three": Composition(Mixture.fixed({"medical": 0.3, "code": 0.2, "science": 0.3}, D, generalist=0.2)),
    "scaled": Composition(Mixture.fixed({"medical": 0.5, "legal": 0.5}, D, scale=1.4)),
    "specialists": Composition(Mixture.fixed({"medical": 0.5, "legal": 0.3}, D, generalist=0.2), CompositionSettings(mix="specialists")),
    "last": Composition(Mixture.fixed({"medical": 0.5, "legal": 0.5}, D), CompositionSettings(layers=1)),
}
UNEVEN = {
    "nodes": Composition(nodes("medical", "legal", "code")),
    "hidden": Composition(nodes("legal", "science", seed=1), CompositionSettings(node_map="hidden")),
}
NAMES = ("medical", "legal", "code", "science")


@pytest.fixture(scope="module", params=["full", "lora"])
def library(request, tmp_path_factory):
    return tiny.tiny_library(tmp_path_factory.mktemp("mixing") / request.param, "qwen2", NAMES, request.param, dtype=torch.float64)


@pytest.fixture(scope="module")
def changes(library):
    return {
        name: {parameter: each for parameter in library.anatomy.shapes if (each := library.change(name, parameter)) is not None}
        for name in NAMES
    }


class Worker:
    """One worker's places of a few of a model's parameters."""

    def __init__(self, library, changes, rank: int, size: int) -> None:
        self.shard = FakeShard(library.anatomy, rank, size).double()
        self.cuts = cuts_of(self.shard, self.shard.load_weights, library.anatomy)
        self.shard.load_weights((name, library.tensor(name)) for name in library.anatomy.shapes)
        self.coefficients = Coefficients(library.anatomy, 64, CPU)
        self.coefficients.places = {name: place for place, name in enumerate(NAMES, 1)}
        self.step, self.library, self.changes = Step(), library, changes

    def parameter(self, name: str) -> Parameter:
        cut = self.cuts[name]
        made = Parameter(cut)
        for slot, changed in enumerate(self.changes.values(), 1):
            tail = local_tail(cut, changed, self.library.tensor, self.library.anatomy.output_axes)
            if tail is not None:
                made.tails[slot] = tail
        made.bound(self.coefficients)
        return made

    def matrix(self, name: str, kind: type[Matrix] = Matrix) -> Matrix:
        whole = dict(self.shard.named_parameters())[name]
        made = kind(self.parameter(name), self.step, lambda x, bias: F.linear(x, whole, bias), lambda tail: lambda x: F.linear(x, tail))
        made.made()
        return made

    def lay(self, compositions, counts) -> None:
        for key, composition in compositions.items():
            if composition is not None:
                self.coefficients.take(key, composition)
        keys = [None if composition is None else key for key, composition in compositions.items()]
        self.step.even = self.coefficients.lay(keys, counts)
        self.step.tokens, self.step.requests = sum(counts), len(counts)


def composed(library, composition, name: str) -> torch.Tensor:
    original = library.tensor(name)
    if composition is None:
        return original
    plan = Plan(library.anatomy, [composition.mixture], composition.settings, original)
    terms = plan.terms(name, library.change) if name in plan.parameters else None
    if terms is None:
        return original
    out = original.clone()
    write(out, terms, lambda: original, library.anatomy.output_axes[name])
    return out


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("which", [EVEN, {**EVEN, **UNEVEN}], ids=["even", "by node"])
def test_sharded_tokens_meet_their_composed_matrices(library, changes, size, which):
    """Column-parallel shards laid side by side, row-parallel shards added: what vLLM's collectives do with them."""
    workers = [Worker(library, changes, rank, size) for rank in range(size)]
    counts = [1 + place % 3 for place in range(len(which))]
    generator = torch.Generator().manual_seed(0)
    for block in (0, 2):
        up, down = f"model.layers.{block}.mlp.up_proj.weight", f"model.layers.{block}.mlp.down_proj.weight"
        x = torch.randn(sum(counts), D, generator=generator, dtype=torch.float64)
        wide = torch.randn(sum(counts), 2 * D, generator=generator, dtype=torch.float64)
        halves, total = [], 0
        for rank, worker in enumerate(workers):
            packed = worker.matrix(f"held.model/layers/{block}/mlp/gate_up_proj/weight")
            row = worker.matrix(f"held.model/layers/{block}/mlp/down_proj/weight")
            worker.lay(which, counts)
            assert worker.step.even == (which is EVEN)
            halves.append(packed.run(x, None)[:, 2 * D // size :])
            total = total + row.run(wide.chunk(size, 1)[rank].contiguous(), None)
        rows = torch.cat([torch.full((count,), place) for place, count in enumerate(counts)])
        for place, composition in enumerate(which.values()):
            own = rows == place
            torch.testing.assert_close(torch.cat(halves, 1)[own], x[own] @ composed(library, composition, up).T, atol=1e-6, rtol=1e-6)
            torch.testing.assert_close(total[own], wide[own] @ composed(library, composition, down).T, atol=1e-6, rtol=1e-6)


def test_biases_and_norms_are_each_tokens_own(library, changes):
    worker = Worker(library, changes, 0, 1)
    counts = [2] * len(EVEN)
    names = {"held.model/layers/1/input_layernorm/weight": None, "held.model/layers/1/self_attn/qkv_proj/bias": None}
    own = dict(worker.shard.named_parameters())
    made = {name: Vectors(worker.parameter(name), worker.step, own[name].data) for name in names}
    for vectors in made.values():
        vectors.made(worker.coefficients.slots)
    for which in (EVEN, {**EVEN, **UNEVEN}):
        worker.lay(which, [2] * len(which))
        for name, vectors in made.items():
            got = vectors.at(torch.empty(2 * len(which), 1))
            parts = vectors.parameter.cut.parts
            want = torch.stack([torch.cat([composed(library, one, part) for part in parts]) for one in which.values()])
            got = own[name].expand(2 * len(which), -1) if got is None else got
            torch.testing.assert_close(got.double(), want.repeat_interleave(2, 0), atol=1e-5, rtol=1e-5)
    worker.lay({"none": None}, counts[:1])
    assert all(vectors.at(torch.empty(2, 1)) is None for vectors in made.values())


def test_a_captured_graph_computes_the_same_from_its_buffer(library, changes):
    worker = Worker(library, changes, 0, 1)
    matrix = worker.matrix("held.model/layers/1/mlp/down_proj/weight")
    worker.lay(EVEN, [2] * len(EVEN))
    x = torch.randn(2 * len(EVEN), 2 * D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    bank = worker.step.bank(matrix.parameter)
    place = bank.buffer.data_ptr()
    want = matrix.run(x, None)
    torch.testing.assert_close(summed_whole(x, bank.buffer, matrix.products).double(), want, atol=1e-5, rtol=1e-5)
    worker.coefficients.lay(["alone"], [3])
    assert bank.buffer.data_ptr() == place
    torch.testing.assert_close(summed_whole(x[:3], bank.buffer, matrix.products).double(), matrix.run(x[:3], None), atol=1e-5, rtol=1e-5)


def test_the_head_knows_whose_row_it_reads(library, changes):
    worker = Worker(library, changes, 0, 1)
    head = worker.matrix("held.lm_head/weight", Head)
    counts = [2, 1, 3]
    which = {name: EVEN[name] for name in ("none", "alone", "three")}
    worker.lay(which, counts)
    hidden = torch.randn(6, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole = [composed(library, composition, "lm_head.weight") for composition in which.values()]
    last = hidden[torch.tensor([1, 2, 5])]
    want = torch.stack([matrix @ row for matrix, row in zip(whole, last, strict=True)])
    torch.testing.assert_close(head.run(last, None), want, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(head.run(hidden[3:6], None), hidden[3:6] @ whole[2].T, atol=1e-6, rtol=1e-6)  # a prompt's log-probabilities
    torch.testing.assert_close(head.run(hidden[0:2], None), hidden[0:2] @ whole[0].T, atol=1e-6, rtol=1e-6)
    if head.parameter.tails:  # LoRA specialists leave it as it is
        with pytest.raises(UnsupportedError, match="Whose tokens"):
            head.run(torch.zeros(7, D, dtype=torch.float64), None)


def test_a_specialist_alone_is_one_product_of_its_own():
    rows = torch.zeros(2, 3, 1)
    rows[:, 1] = 1
    assert passes_of(rows, torch.tensor([3, 2]), torch.zeros(8, 3)) == (Pass(1, None, None),)
    calls = []
    products = {slot: lambda x, slot=slot: calls.append((slot, len(x))) or x for slot in range(3)}
    rows[1] = torch.tensor([0.0, 0.5, 0.5])[:, None]
    summed(torch.ones(5, 4), passes_of(rows, torch.tensor([3, 2]), torch.zeros(8, 3)), products)
    assert calls == [(1, 5), (2, 2)]


def test_half_types_are_added_in_float32():
    x = torch.ones(1, 1, dtype=torch.bfloat16)
    products = {0: lambda x: x * 256.0, 1: lambda x: x}
    passes = (Pass(0, None, torch.tensor([[1.0]])), *[Pass(1, None, torch.tensor([[0.5]]))] * 4)
    assert summed(x, passes, products).item() == 258.0  # in bfloat16, 256 + 0.5 is 256


def test_padding_gets_zeros():
    passes = (Pass(0, None, torch.full((2, 1), 0.5)), Pass(1, torch.tensor([1]), None))
    found = summed(torch.ones(4, 2), passes, {0: lambda x: x, 1: lambda x: x}, tokens=2)
    assert found.tolist() == [[0.5, 0.5], [1.5, 1.5], [0.0, 0.0], [0.0, 0.0]]


def test_what_is_kept_of_a_composition_goes_with_its_last_request(library, changes):
    worker = Worker(library, changes, 0, 1)
    matrix = worker.matrix("held.model/layers/1/mlp/down_proj/weight")
    kept = worker.coefficients
    for _ in range(2):
        kept.take("three", EVEN["three"])
    kept.lay(["three"], [2])
    kept.let_go("three")
    assert kept.uses("code")
    assert "three" in worker.step.bank(matrix.parameter).known
    kept.let_go("three")
    assert not kept.uses("code")
    assert "three" not in worker.step.bank(matrix.parameter).known
    with pytest.raises(UnknownName):
        kept.take("x", Composition(Mixture.fixed({"medicine": 1.0}, D)))


def test_the_same_layout_costs_nothing(library, changes):
    worker = Worker(library, changes, 0, 1)
    matrix = worker.matrix("held.model/layers/1/mlp/down_proj/weight")
    worker.lay(EVEN, [1] * len(EVEN))
    passes = worker.step.bank(matrix.parameter).passes
    worker.lay(EVEN, [1] * len(EVEN))
    assert worker.step.bank(matrix.parameter).passes is passes


def test_thin_is_up_of_down():
    change = LowRank(torch.randn(5, 2), torch.randn(2, 3))
    x = torch.randn(4, 3)
    torch.testing.assert_close(thin(change)(x), x @ change.delta(0).T)
