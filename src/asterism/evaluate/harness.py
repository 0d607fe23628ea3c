"""Compositions as a model of `lm-eval`, so that its standard tasks score them: `--model asterism`.

The harness finds models of its own alone, so this module starts it with ours beside them:

    python -m asterism.evaluate.harness run --model asterism --model_args library=library --tasks arc_easy

In Python an import is enough: `import asterism.evaluate.harness`, then `lm_eval.simple_evaluate(model="asterism", ...)`.
A mixture is made from what stands before an answer, never from the answer: of a context, its text; of a text that is scored whole, what
has been read of it so far.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import lm_eval.models  # noqa: F401  the harness's own models, which it looks for only while it knows none
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows

from asterism.compose.answering import continued
from asterism.compose.composer import Composer
from asterism.compose.settings import RENEW, CompositionSettings, mixture_settings
from asterism.constellation.index import FOLDER, Constellation
from asterism.constellation.mixture import Mixture
from asterism.core.errors import AsterismError, DataError, SettingsError, UnknownName, UnsupportedError
from asterism.core.progress import counting
from asterism.evaluate.predicting import Window, continuation_scores, rolling_losses
from asterism.models.batching import pad_id, room_of
from asterism.models.library import Library

SPECIALIST = "specialist:"
DTYPES = ("float32", "bfloat16", "float16", "float64")
CHOSEN = ("evidence", "fast", "nodes")
FIXED = ("base", "uniform")
TOKENS = 4096
"""Tokens of a batch where the harness leaves its size to us (`--batch_size auto`)."""
Scored = tuple[tuple[str, str], list[int], list[int]]
"""((context, continuation), tokens of the context, of the continuation)."""


@register_model("asterism")
class AsterismLM(TemplateLM):
    """A library as the harness asks it: a composition for each context, or one rival for all."""

    def __init__(
        self,
        library: str,
        mode: str = "evidence",
        top_k: int | None = None,
        layers: int | str = "all",
        node_map: str = "tiled",
        read: Literal["start", "end"] = "start",
        renew: int = RENEW,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        device: str | None = "cpu",
        dtype: str | None = None,
    ) -> None:
        """`mode`: what weighs the specialists (evidence, fast, nodes), or a rival: base, uniform, specialist:NAME.

        layers: `all`, the last so many, or a list such as 8+9.
        read: whether a long context is read from its start, as a server does, or at its end, where few-shot tasks have the question.
        device: the harness says cuda:0 where nobody chose; without CUDA that is the CPU.
        renew: tokens after which the mixture of a text that is written, or scored whole, is made again; 0: never.
        Raises UnknownName, SettingsError, StorageError as the library does.
        """
        super().__init__()
        if dtype not in (None, *DTYPES):
            raise UnknownName("dtype", dtype, DTYPES)
        blocks = tuple(layers.split("+")) if isinstance(layers, str) and layers != "all" else layers
        there = "cpu" if device is None or (device.startswith("cuda") and not torch.cuda.is_available()) else device
        self.library = Library.open(library, device=there, dtype=getattr(torch, dtype) if dtype else None)
        self.composer = Composer(self.library, CompositionSettings(**{"layers": blocks, "node_map": node_map}))
        self.tokenizer, self._device = self.library.tokenizer, self.library.device
        if read not in ("start", "end"):
            raise UnknownName("end of a context to read", read, ("start", "end"))
        self.read, self.renew, self.max_gen_toks = read, int(renew) or 2**31, int(max_gen_toks)
        self.max_length = room_of(self.composer.model, int(max_length or 2**31))
        self.batch_size = batch_size if batch_size == "auto" else int(batch_size)
        self._rows = int(max_batch_size or 2**31) if batch_size == "auto" else int(batch_size)
        self._choosing(mode, top_k)

    # ---- which mixture

    def _choosing(self, mode: str, top_k: int | None) -> None:
        """Open the constellation, or make the one model that a rival is."""
        self.constellation = self._fixed = None
        names, width = self.library.names, self.library.anatomy.hidden_size
        if mode in CHOSEN:
            self.constellation = Constellation.load(self.library.root / FOLDER, self.library)
            settings = mixture_settings(len(self.constellation.domains), self.composer.settings)
            self.settings = settings.changed(mode=mode, **({"top_k": int(top_k)} if top_k else {}))
            return
        if top_k is not None:
            raise SettingsError("A rival chooses no specialists.", met=f"mode {mode}, top_k {top_k}", mend="leave top_k out")
        if mode == "uniform":
            self._fixed = Mixture.uniform(names, width)
        elif mode.startswith(SPECIALIST):
            if (name := mode.removeprefix(SPECIALIST)) not in names:
                raise UnknownName("specialist", name, names)
            self._fixed = Mixture.fixed({name: 1.0}, width)
        elif mode != "base":
            raise UnknownName("mode", mode, [*CHOSEN, *FIXED, *(SPECIALIST + name for name in names)])
        if self._fixed is not None:
            self.composer.materialise(self._fixed)

    def mixtures(self, contexts: Sequence[Sequence[int]]) -> list[Mixture] | None:
        """The mixture of each context, equal contexts sharing one; None where one model, the composer's as it is, answers all.

        A context without text is answered by the generalist.
        """
        if self.constellation is None:
            return None
        window, nothing = self.constellation.settings.max_length, self._nothing
        parts = [own[:window] if self.read == "start" else own[-window:] for own in map(tuple, contexts)]
        texts = {own: self.tokenizer.decode(own, skip_special_tokens=True) for own in dict.fromkeys(parts)}
        known = dict.fromkeys(text for text in texts.values() if text.strip())
        made = dict(zip(known, self.constellation.mixtures(list(known), self.settings), strict=True)) if known else {}
        return [made.get(texts[own], nothing) for own in parts]

    # ---- what the harness asks

    def _loglikelihood_tokens(self, requests: Sequence[Scored], disable_tqdm: bool = False, **rest: Any) -> list[tuple[float, bool]]:
        """(summed log-probability of the continuation in nats, whether it is the likeliest at every token) of each request."""
        found: dict[int, tuple[float, bool]] = {}
        made = self.mixtures([context for _, context, _ in requests])
        rows = [self._input(context, continuation) for _, context, continuation in requests]
        with counting("scoring", len(requests)) as advance:
            for some in self._batches([len(row) for row in rows]):
                own = [made[row] for row in some] if made else None
                parts = [rows[row] for row in some], [requests[row][2] for row in some]
                found |= dict(zip(some, continuation_scores(self.composer, *parts, own, pad=pad_id(self.tokenizer)), strict=True))
                advance(len(some))
        for row, (asked, _, _) in enumerate(requests):
            self.cache_hook.add_partial("loglikelihood", asked, found[row])
        return [found[row] for row in range(len(requests))]

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of each whole text in nats, every token under a mixture made from what stands before it."""
        parts = [(number, window) for number, request in enumerate(requests) for window in self._windows(request.args[0])]
        choose, total = self._prefixes if self.constellation else None, [0.0] * len(requests)
        with counting("scoring", len(parts)) as advance:
            for some in self._batches([len(window.inputs) for _, window in parts]):
                windows = [parts[place][1] for place in some]
                losses = rolling_losses(self.composer, windows, choose, renew=self.renew, pad=pad_id(self.tokenizer))
                for place, loss in zip(some, losses, strict=True):
                    total[parts[place][0]] -= loss
                advance(len(some))
        for request, own in zip(requests, total, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, own)
        return total

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """What is written behind each context, up to one of its `until` texts; the mixture is renewed on the way."""
        found: dict[int, str] = {}
        with counting("answers", len(requests)) as advance:
            for wanted, rows in self._by_wishes(requests):
                tokens = {row: self._prompt(requests[row].args[0], wanted["max_new_tokens"]) for row in rows}
                for some in self._batches([len(tokens[row]) + wanted["max_new_tokens"] for row in rows]):
                    chosen = [rows[place] for place in some]
                    texts = [requests[row].args[0] for row in chosen]
                    answers = continued(self.composer, texts, [tokens[row] for row in chosen], self._choose, **wanted)
                    found |= {row: one.text for row, one in zip(chosen, answers, strict=True)}
                    advance(len(chosen))
        for row, request in enumerate(requests):
            self.cache_hook.add_partial("generate_until", request.args, found[row])
        return [found[row] for row in range(len(requests))]

    # ---- the parts of it

    def _windows(self, text: str) -> Iterable[Window]:
        """A text in parts that the model has room for; each token is scored once, with as much before it as there is room for."""
        tokens, seen = self.tok_encode(text, add_special_tokens=False), 0
        for inputs, targets in get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, context_len=1):
            known = len(inputs) - len(targets)
            first = seen - known
            before = tokens[max(0, first - self.max_length) : first]
            yield Window(tuple(inputs), tuple(tokens[first : first + len(inputs)]), tuple(before), known)
            seen += len(targets)

    def _input(self, context: Sequence[int], continuation: Sequence[int]) -> list[int]:
        """What the model reads to predict a continuation: all but its last token, the end of what is longer than the model."""
        if not 0 < len(continuation) <= self.max_length:
            met = f"{len(continuation)} tokens, the model has {self.max_length} positions"
            raise DataError("A continuation cannot be scored.", met=met, mend="1 token at least, and room for all of them")
        return [*context, *continuation][-(self.max_length + 1) :][:-1]

    def _batches(self, lengths: Sequence[int]) -> Iterable[list[int]]:
        """Rows of like length, longest first: `batch_size` of them, or as many as hold TOKENS tokens."""
        order, tokens = sorted(range(len(lengths)), key=lambda row: -lengths[row]), TOKENS if self.batch_size == "auto" else 2**31
        while order:
            count = max(1, min(self._rows, tokens // max(1, lengths[order[0]])))
            yield order[:count]
            order = order[count:]

    def _by_wishes(self, requests: Sequence[Instance]) -> Iterable[tuple[dict[str, Any], list[int]]]:
        """Requests that are to be answered in the same way, and how."""
        groups: dict[str, tuple[dict[str, Any], list[int]]] = {}
        for row, request in enumerate(requests):
            *_, wishes = request.args
            wanted = self._wanted(wishes)
            groups.setdefault(repr(wanted), (wanted, []))[1].append(row)
        return groups.values()

    def _wanted(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The harness's words for how to write, as `continued` takes them; UnsupportedError for what it cannot do."""
        asked: dict[str, Any] = dict(normalize_gen_kwargs(dict(given), self.max_gen_toks))
        stop, new, sampled = asked.pop("until", []), asked.pop("max_gen_toks"), asked.pop("do_sample", False)
        temperature, top_p = asked.pop("temperature", 0.0), asked.pop("top_p", 1.0)
        if asked:
            mend = "until, max_gen_toks, do_sample, temperature and top_p are known"
            raise UnsupportedError("Answers cannot be written so.", met=", ".join(f"{n}={v!r}" for n, v in asked.items()), mend=mend)
        drawing = {"temperature": temperature or 1.0, "top_p": top_p} if sampled else {}
        window = self.constellation.settings.max_length if self.constellation else 0
        renew = self.renew if self.constellation and self.renew < new else 0
        stop = tuple(text for text in ([stop] if isinstance(stop, str) else stop or ()) if text)
        return {"stop": stop, "max_new_tokens": new, "drawing": drawing, "window": window, "renew": renew}

    def _prompt(self, context: str, new: int) -> list[int]:
        room = self.max_length - new
        if room < 1:
            met = f"{new} new tokens of {self.max_length} positions"
            raise SettingsError("There is no room for a context.", met=met, mend="lower max_gen_toks")
        return (self.tok_encode(context) or [self.prefix_token_id])[-room:]

    def _choose(self, texts: Sequence[str], tokens: Sequence[Sequence[int]]) -> list[Mixture]:
        made = self.mixtures(tokens)
        return [self._fixed or self._nothing] * len(texts) if made is None else made

    def _prefixes(self, tokens: Sequence[Sequence[int]]) -> list[Mixture]:
        """The mixtures of texts read so far: of their ends, as answers renew theirs."""
        assert self.constellation is not None
        window = self.constellation.settings.max_length
        return self.mixtures([own[-window:] for own in tokens]) or []

    @property
    def _nothing(self) -> Mixture:
        """The generalist as a mixture."""
        return Mixture.fixed({self.library.names[0]: 0.0}, self.library.anatomy.hidden_size, generalist=1.0)

    # ---- text and tokens

    @property
    def eot_token_id(self) -> int:
        """The token that ends texts."""
        return int(self.tokenizer.eos_token_id or 0)

    @property
    def prefix_token_id(self) -> int:
        """The token that stands before a text with nothing else before it."""
        begin = self.tokenizer.bos_token_id
        return self.eot_token_id if begin is None else int(begin)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **rest: Any) -> list[int]:
        """Tokens of a text; a begin token that it already has is not put there twice."""
        begin = self.tokenizer.bos_token
        if add_special_tokens is None and begin and string.startswith(begin):
            add_special_tokens = False
        return self.tokenizer.encode(string, **({} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}))

    @property
    def tokenizer_name(self) -> str:
        """For the harness's caches of requests."""
        return Path(self.library.generalist).name

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as the model reads it."""
        asked = dict(tokenize=False, add_generation_prompt=add_generation_prompt, continue_final_message=not add_generation_prompt)
        return str(self.tokenizer.apply_chat_template(chat_history, **asked))


def main() -> int:
    """`lm-eval`'s own command line, with `--model asterism` known; errors of ours in three lines."""
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except AsterismError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
