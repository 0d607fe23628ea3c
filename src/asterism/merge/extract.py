"""A LoRA from a model that was tuned in full: the nearest of a rank, or of a share of the change's energy."""

from __future__ import annotations

from functools import partial
from importlib.metadata import version
from math import sqrt
from pathlib import Path

from torch import Tensor

from asterism.core.errors import SettingsError, UnsupportedError
from asterism.core.gram import accumulator, gram
from asterism.core.parts import passing_parts
from asterism.core.progress import track
from asterism.core.storage import alone, digest_of
from asterism.merge.adapting import Ground, largest, save, told_of
from asterism.merge.findings import content_digest, model_digest
from asterism.merge.places import place_for
from asterism.merge.references import Origin, Reference
from asterism.merge.sources import Opened, check_apart, open_model
from asterism.models.fitting import AdapterReport, Fitting
from asterism.models.likeness import check_architecture, check_tokenizer, parameter_names
from asterism.models.loading import read_config

RECORD = "extraction.json"
FORMAT_VERSION = 1


def extract(
    base: str | Path | Reference,
    specialist: str | Path | Reference,
    out: str | Path,
    *,
    rank: int | None = None,
    energy: float | None = None,
    strict: bool = False,
    device: str = "cpu",
) -> AdapterReport:
    """Write what `specialist` changes of `base` as a PEFT LoRA of `base`, with `extraction.json` and a card; what it loses is reported.

    rank: the most of each matrix; energy: instead, the share of each change's squared norm that its own rank must keep, so a share e leaves
    a relative error of at most sqrt(1 - e). Models are folders or Hub ids (`recipe.yaml`'s way to name them); one tensor of each is in
    memory at a time. Norms, biases and embeddings fit in no LoRA: they are told with the norm of their change, or with `strict` refused.
    `out` is whole or absent; a killed run that is asked for the same goes on where it stopped.
    Raises SettingsError (rank, energy, nothing to write), MismatchError (another architecture, tokenizer or shape), UnsupportedError
    (`strict`), DataError for NaN and Inf, StorageError when `out` holds something other than an earlier extraction, or is being written.
    """
    if (rank is None) == (energy is None):
        met = "neither" if rank is None else "both"
        raise SettingsError("An extraction takes a rank, or a share of the energy.", met=met, mend="rank 16, or energy 0.9")
    out = place_for(out, RECORD, "extraction")
    ours, theirs = (open_model(_reference(model)) for model in (base, specialist))
    check_apart(out, (ours, theirs))
    ground = _alike(ours, theirs)
    fitting = Fitting(ground.anatomy, rank=rank, energy=energy)
    pairs = _Pairs(ours, theirs, ground)
    linear = [name for name in ground.anatomy.shapes if ground.anatomy.is_linear(name)]
    for name in track([name for name in ground.anatomy.shapes if name not in linear], "what no adapter holds"):
        fitting.leave_out(name, pairs.read(name)[2])
    if strict and fitting.report.left_out:
        mend = "leave strict out to extract the rest, or keep the whole checkpoint"
        raise UnsupportedError("Something changed that no LoRA can hold.", met=f"{largest(fitting.report)}, norms of the change", mend=mend)
    asked = f"cut to rank {rank}" if energy is None else f"{energy:.4g} of the energy of every matrix's change kept"
    with alone(out), passing_parts(out.with_name(f".{out.name}.extracting"), digest_of(rank, energy, device)) as parts:
        for name in track(linear, "matrices"):
            one, other, norm = pairs.read(name)
            if norm:
                fitting.restore(name, parts.tensors(pairs.key(name), partial(_cut, fitting, name, one, other, device)))
        fitting.check("change")
        told = {
            "format_version": FORMAT_VERSION, "asterism": version("asterism"), "kind": "extraction", "base": ground.name,
            "revision": ground.origin.revision, "specialist": str(theirs.reference), "rank": rank, "energy": energy,
            "digests": pairs.digests, "adapter": told_of(fitting.report),
        }  # fmt: skip
        content = {str(model.reference): pairs.digests[who] for who, model in (("base", ours), ("specialist", theirs))}
        save(out, fitting, ground, RECORD, told, f"what {theirs.reference} changes of it, {asked}.", content)
    return fitting.report


def _cut(fitting: Fitting, name: str, one: Tensor, other: Tensor, device: str) -> dict[str, Tensor]:
    wide = accumulator(one, other)
    fitting.cut(name, other.to(device, wide) - one.to(device, wide))
    return fitting.kept(name)


class _Pairs:
    """The tensors of both models by parameter, and digests of all that was read."""

    def __init__(self, ours: Opened, theirs: Opened, ground: Ground) -> None:
        models = {"base": ours, "specialist": theirs}
        self._models = {who: (model, parameter_names(model.checkpoint, ground.expected).stored) for who, model in models.items()}
        self._read: dict[str, dict[str, str]] = {who: {} for who in models}

    def read(self, name: str) -> tuple[Tensor, Tensor, float]:
        """The base's, the specialist's, and the norm of their difference. DataError for NaN and Inf."""
        one, other = (model.tensor(names[name]) for model, names in self._models.values())
        for who, tensor in zip(self._read, (one, other), strict=True):
            self._read[who][name] = content_digest(tensor)
        return one, other, sqrt(gram([other], one, name=name).item())

    def key(self, name: str) -> str:
        """The parameter and what both models hold of it."""
        return f"{name}-{digest_of([read[name] for read in self._read.values()])[:16]}"

    @property
    def digests(self) -> dict[str, str]:
        """The `model_digest` of each."""
        return {who: model_digest(read) for who, read in self._read.items()}


def _reference(model: str | Path | Reference) -> Reference:
    """A folder that exists is meant before the signs in its name."""
    if isinstance(model, Reference):
        return model
    here = isinstance(model, Path) or Path(model).expanduser().is_dir()
    return Reference(Origin(str(model))) if here else Reference.of(model)


def _alike(ours: Opened, theirs: Opened) -> Ground:
    """The base, once it is known that the specialist's weights can be its own, changed."""
    if ours.lora is not None:
        mend = "write BASE+ADAPTER as a checkpoint first: a recipe with passthrough"
        raise UnsupportedError("An adapter is put on a plain checkpoint.", met=str(ours.reference), mend=mend)
    check_architecture(read_config(ours.folder), ours.folder, theirs.folder)
    check_tokenizer(ours.folder, theirs.folder, set())
    _ = ours.tied, theirs.tied  # raises where weights that the config ties differ
    return Ground.of(ours.reference.model, ours.folder)
