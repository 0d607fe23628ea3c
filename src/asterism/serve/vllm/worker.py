"""The worker that mixes: `--worker-cls asterism.serve.vllm.worker.MixingWorker`, in an unmodified vLLM.

It reads the library named by `--additional-config '{"asterism": {"library": "..."}}'`, lays every step out by its requests' mixtures
before the model runs, and otherwise is the platform's own worker.
"""

# pyright: reportMissingImports=false
# vLLM is no dependency: users bring the build for their machine.
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from vllm.config import set_current_vllm_config
from vllm.model_executor.model_loader import get_model_loader
from vllm.platforms import current_platform

from asterism.core.errors import SettingsError, UnsupportedError
from asterism.models.changes import Change
from asterism.models.library import Library
from asterism.serve.vllm.cuts import Cut, cuts_of
from asterism.serve.vllm.guard import compiled, library_of
from asterism.serve.vllm.mixing import Coefficients
from asterism.serve.vllm.patching import Patched, owners_of
from asterism.serve.vllm.payload import FIELD, composition_from

if TYPE_CHECKING:
    from vllm.v1.worker.gpu_worker import Worker
elif current_platform.is_cpu():
    from vllm.v1.worker.cpu_worker import CPUWorker as Worker
elif current_platform.is_xpu():
    from vllm.v1.worker.xpu_worker import XPUWorker as Worker
else:
    from vllm.v1.worker.gpu_worker import Worker


class MixingWorker(Worker):
    """Runs every request under the mixture among its extra arguments; requests without one under the generalist."""

    def load_model(self, **kwargs: Any) -> None:
        """Load the generalist and, beside it, what each specialist changes."""
        self._refuse()
        root = library_of(self.vllm_config)
        library = Library.open(root, dtype=self.model_config.dtype)
        cuts: dict[str, Cut] = {}
        owners: dict[str, list[tuple[str, str]]] = {}
        with _probing(self.vllm_config.load_config, library, cuts, owners):
            super().load_model(**kwargs)
        _check_whole(library, cuts, alone=self.vllm_config.parallel_config.pipeline_parallel_size == 1)
        most = self.scheduler_config.max_num_batched_tokens
        coefficients = Coefficients(library.anatomy, most, torch.device(self.device))  # pyright: ignore[reportArgumentType]
        model: Any = self.get_model()
        self.patched = Patched(model, cuts, owners, library.anatomy, coefficients, dtype=self.model_config.dtype)
        self._running: dict[str, str | None] = {}
        with set_current_vllm_config(self.vllm_config), torch.inference_mode(False):
            self.patched.add({name: changes_of(library, name) for name in library.names}, library.tensor)
        runner: Any = self.model_runner
        runner.model_memory_usage = getattr(runner, "model_memory_usage", 0) + sum(self.patched.nbytes().values())
        self.patched.fixed = compiled(self.vllm_config)
        self._watch()

    def execute_model(self, scheduler_output: Any) -> Any:
        """Note whose requests come and go, then run the step."""
        self._note(scheduler_output)
        return super().execute_model(scheduler_output)

    def execute_dummy_batch(self) -> None:
        """A step without requests."""
        self.patched.rest()
        super().execute_dummy_batch()

    # ---- asked by the engine, on every worker

    def asterism_add(self, name: str, source: str) -> None:
        """Hold the library's specialist `source` under the name `name`."""
        library = Library.open(library_of(self.vllm_config), dtype=self.model_config.dtype)
        with set_current_vllm_config(self.vllm_config), torch.inference_mode(False):
            self.patched.add({name: changes_of(library, source)}, library.tensor)

    def asterism_drop(self, name: str) -> None:
        """Forget a specialist; no request may run with it any more."""
        self.patched.drop(name)

    def asterism_bytes(self) -> dict[str, int]:
        """Specialist -> bytes that it takes on this worker."""
        return self.patched.nbytes()

    # ---- steps

    def _note(self, scheduled: Any) -> None:
        for request in scheduled.finished_req_ids:
            key = self._running.pop(request, None)
            if key is not None:
                self.patched.coefficients.let_go(key)
        for new in scheduled.scheduled_new_reqs:
            if new.req_id in self._running:  # it was preempted, and comes again
                continue
            given = (getattr(new.sampling_params, "extra_args", None) or {}).get(FIELD)
            self._running[new.req_id] = None
            if given is not None:
                coefficients = self.patched.coefficients
                made = composition_from(given, coefficients.anatomy.hidden_size, coefficients.places)
                coefficients.take(made.key, made)
                self._running[new.req_id] = made.key

    def _lay(self, requests: Sequence[str], counts: Sequence[int]) -> None:
        self.patched.lay([self._running.get(request) for request in requests], [int(count) for count in counts])

    def _watch(self) -> None:
        """Lay every step out once the runner has put its requests in order, before the model runs."""
        runner: Any = self.model_runner
        if hasattr(runner, "model_state"):  # the second model runner
            prepare = runner.model_state.prepare_inputs

            def prepared(batch: Any, states: Any) -> Any:
                self._lay(batch.req_ids[: batch.num_reqs], batch.num_scheduled_tokens[: batch.num_reqs])
                return prepare(batch, states)

            runner.model_state.prepare_inputs = prepared
            return
        first = runner._prepare_inputs

        def in_order(scheduled: Any, counts: Any, *args: Any, **kwargs: Any) -> Any:
            found = first(scheduled, counts, *args, **kwargs)
            self._lay(runner.input_batch.req_ids[: runner.input_batch.num_reqs], counts)
            return found

        runner._prepare_inputs = in_order

    def _refuse(self) -> None:
        config = self.vllm_config
        parallel, mend = config.parallel_config, "leave it out, or serve with the local engine"
        wrong = {
            "speculative decoding": config.speculative_config is not None,
            "LoRA beside mixtures": config.lora_config is not None,
            "quantised weights": config.quant_config is not None,
            "microbatches": bool(getattr(parallel, "enable_dbo", False)),
            "sequence parallelism": bool(getattr(config.compilation_config.pass_config, "enable_sp", False)),
        }
        if met := [name for name, there in wrong.items() if there]:
            raise SettingsError("Mixtures do not go with that in vLLM.", met=", ".join(met), mend=mend)


def changes_of(library: Library, name: str) -> dict[str, Change]:
    """What a specialist changes, by the library's parameters."""
    found = {parameter: library.change(name, parameter) for parameter in library.anatomy.shapes}
    return {parameter: change for parameter, change in found.items() if change is not None}


def _check_whole(library: Library, cuts: Mapping[str, Cut], *, alone: bool) -> None:
    """UnsupportedError where a parameter of the library lies nowhere in the model of a worker that holds all layers."""
    missing = library.anatomy.shapes.keys() - {part for cut in cuts.values() for part in cut.parts}
    if alone and missing:
        met, mend = ", ".join(sorted(missing)[:5]), "serve this model with the local engine"
        raise UnsupportedError("vLLM's model lacks parameters of the library.", met=met, mend=mend)


@contextmanager
def _probing(config: Any, library: Library, cuts: dict[str, Cut], owners: dict[str, list[tuple[str, str]]]) -> Iterator[None]:
    """Within, a model that is loaded first tells how its parameters are cut, before their weights are packed away."""
    kind: Any = type(get_model_loader(config))
    own = kind.load_weights

    def load_weights(self: Any, model: Any, model_config: Any) -> None:
        cuts.update(cuts_of(model, partial(_loaded, model), library.anatomy))
        owners.update(owners_of(model))
        own(self, model, model_config)

    kind.load_weights = load_weights
    try:
        yield
    finally:
        kind.load_weights = own


def _loaded(model: Any, weights: Any) -> None:
    device = next(model.parameters()).device
    model.load_weights((name, tensor.to(device)) for name, tensor in weights)
