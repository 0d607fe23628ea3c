"""`lm-eval` runs a local task on compositions: its numbers are those of the models that the contexts need."""

from __future__ import annotations

import json
import sys
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from asterism.compose.answering import answer
from asterism.compose.build import compose
from asterism.constellation.index import FOLDER, Constellation
from asterism.core.errors import DataError, SettingsError, UnknownName, UnsupportedError
from asterism.evaluate import harness
from asterism.models.likelihood import losses_by_token
from tests.tiny import tiny_library, tiny_probes

ROWS = [
    {"question": "The court heard the", "choices": [" appeal", " kidney", " loop"], "gold": 0, "text": "The court dismissed the appeal."},
    {"question": "Insulin lowers", "choices": [" blood glucose", " the statute"], "gold": 0, "text": "Photons carry energy."},
    {"question": "for i in", "choices": [" range(3):", " court"], "gold": 0, "text": "def add(a, b):\n    return a + b"},
]
TASKS = {
    "choices": "output_type: multiple_choice\ndoc_to_text: question\ndoc_to_choice: choices\ndoc_to_target: gold\ntarget_delimiter: ''\n"
    "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]",
    "texts": "output_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: text\n"
    "metric_list: [{metric: byte_perplexity}]",
    "answers": "output_type: generate_until\ndoc_to_text: question\ndoc_to_target: text\n"
    "generation_kwargs: {until: ['.'], max_gen_toks: 5}\nmetric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]",
}  # fmt: skip


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    library = tiny_library(tmp_path_factory.mktemp("library"))
    Constellation.build(library, tiny_probes()).save()
    return Constellation.load(library.root / FOLDER, library)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "rows.json").write_text(json.dumps(ROWS), "utf-8")
    (folder / "rows.py").write_text(
        "import json, pathlib\nfrom datasets import Dataset, DatasetDict\n\n\ndef load(**given):\n"
        "    rows = json.loads((pathlib.Path(__file__).parent / 'rows.json').read_text('utf-8'))\n"
        "    return DatasetDict(test=Dataset.from_list(rows))\n"
    )
    for name, body in TASKS.items():
        head = f"task: own_{name}\ncustom_dataset: !function rows.load\ntest_split: test\nmetadata: {{version: 1}}\n"
        (folder / f"{name}.yaml").write_text(head + body + "\n")
    return folder


def lm(built, **given):
    return harness.AsterismLM(str(built.library.root), batch_size="auto", **given)


def requests(*arguments):
    return [SimpleNamespace(args=one) for one in arguments]


def test_standard_tasks_score_compositions(built, tasks):
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    asked = dict(tasks=[f"own_{name}" for name in TASKS], task_manager=manager, batch_size=2, bootstrap_iters=0)
    found = lm_eval.simple_evaluate("asterism", {"library": str(built.library.root)}, **asked)
    assert found is not None
    right = 0
    for row, sample in zip(ROWS, found["samples"]["own_choices"], strict=True):
        model, told = compose(built.library, built.mixture(row["question"])), []
        for choice in row["choices"]:
            read = built.library.tokenizer(row["question"])["input_ids"]
            losses = losses_by_token(model, built.library.tokenizer, [row["question"] + choice])[0]
            told.append(-float(losses[len(read) - 1 :].sum()))
        assert [score for score, _ in sample["filtered_resps"]] == pytest.approx(told, abs=1e-4)
        right += max(range(len(told)), key=told.__getitem__) == row["gold"]
    assert found["results"]["own_choices"]["acc,none"] == pytest.approx(right / 3)
    answers = answer(built.library, built, [row["question"] for row in ROWS], max_new_tokens=5)
    written = [sample["filtered_resps"][0] for sample in found["samples"]["own_answers"]]
    assert written == [one.text.split(".")[0] for one in answers]
    assert found["results"]["own_texts"]["byte_perplexity,none"] > 1


def test_rivals_are_the_models_themselves(built):
    context, continuation = "The patient was given", " antibiotics for pneumonia"
    tokenizer = built.library.tokenizer
    for mode, name in (("base", None), ("specialist:legal", "legal")):
        own = lm(built, mode=mode)
        losses = losses_by_token(built.library.model(name), tokenizer, [context + continuation])[0]
        read = len(tokenizer(context)["input_ids"])
        score, _ = own.loglikelihood(requests((context, continuation)), disable_tqdm=True)[0]
        assert score == pytest.approx(-float(losses[read - 1 :].sum()), abs=1e-4)
        ids = torch.tensor([[own.prefix_token_id, *tokenizer(context)["input_ids"]]])
        with torch.no_grad():
            logits = built.library.model(name)(ids).logits[0, :-1].log_softmax(-1)
        want = float(logits.gather(-1, ids[0, 1:, None]).sum())
        assert own.loglikelihood_rolling(requests((context,))) == pytest.approx([want], abs=1e-4)
        again, _ = own.loglikelihood(requests((context, continuation)), disable_tqdm=True)[0]
        own.generate_until(requests((context, {"until": ["\n"], "max_gen_toks": 3})))
        assert own.loglikelihood(requests((context, continuation)), disable_tqdm=True)[0][0] == pytest.approx(again, abs=1e-6)
    assert lm(built, mode="uniform").loglikelihood(requests((context, continuation)), disable_tqdm=True)[0][0] != pytest.approx(score)


def test_nothing_read_is_the_generalist_and_the_answer_is_never_read(built):
    own, base = lm(built), lm(built, mode="base")
    alone = requests(("", "The court"))
    assert own.loglikelihood(alone, disable_tqdm=True)[0][0] == pytest.approx(base.loglikelihood(alone, disable_tqdm=True)[0][0], abs=1e-5)
    seen = []
    own.mixtures, before = lambda contexts: seen.extend(contexts) or before(contexts), own.mixtures
    own.loglikelihood(requests(("The court", " adjourned"), ("The court", " kidney")), disable_tqdm=True)
    assert {own.tokenizer.decode(tokens) for tokens in seen} == {"The court"}
    texts = ["Photons carry", "The jury found the corporation liable for negligence."]
    whole = own.loglikelihood_rolling(requests(*((text,) for text in texts)))
    assert whole == pytest.approx([own.loglikelihood_rolling(requests((text,)))[0] for text in texts], abs=1e-4)
    short = lm(built, max_length=6)
    assert short.loglikelihood_rolling(requests((texts[1],)))[0] != pytest.approx(whole[1], abs=1e-3)


def test_a_long_context_is_read_at_its_start_or_its_end(built):
    medical, legal = "Fever and a persistent cough suggest an infection. " * 6, "The court dismissed the appeal."
    tokens = [built.library.tokenizer(medical + legal)["input_ids"]]
    rows, settings = {name: built.fingerprints(name) for name in built.rows}, built.settings.changed(max_length=12)
    cut = Constellation.from_fingerprints(built.library, rows, settings, digests=built.origin["probes"])
    found = {}
    for read in ("start", "end"):
        own = lm(built, read=read)
        own.constellation = cut
        found[read] = own.mixtures(tokens)[0]
    part = {"start": tokens[0][:12], "end": tokens[0][-12:]}
    for read, one in found.items():
        assert one.shares == pytest.approx(cut.mixture(built.library.tokenizer.decode(part[read])).shares, abs=1e-5)
    assert found["start"].shares != pytest.approx(found["end"].shares, abs=1e-3)


def test_what_is_refused(built):
    for given, wrong in (
        (dict(mode="evidense"), "did you mean 'evidence'"),
        (dict(mode="specialist:leagl"), "did you mean 'legal'"),
        (dict(mode="base", top_k=2), "leave top_k out"),
        (dict(read="middle"), "start"),
        (dict(dtype="float33"), "did you mean 'float3"),
        (dict(layers=9), "fewer blocks"),
    ):
        with pytest.raises((UnknownName, SettingsError), match=wrong):
            lm(built, **given)
    own = lm(built)
    with pytest.raises(UnsupportedError, match="num_beams=4"):
        own.generate_until(requests(("The court", {"num_beams": 4})))
    with pytest.raises(SettingsError, match="room for a context"):
        own.generate_until(requests(("The court", {"max_gen_toks": 128})))
    with pytest.raises(DataError, match="128 positions"):
        own.loglikelihood(requests(("The court", " appeal" * 128)), disable_tqdm=True)


def test_the_harness_command_line_knows_it(built, tasks, tmp_path, monkeypatch, capsys):
    from lm_eval.tasks import TaskManager

    monkeypatch.setattr("lm_eval.tasks.TaskManager", partial(TaskManager, include_defaults=False))  # reading ten thousand tasks takes long
    given = ["lm-eval", "run", "--model", "asterism", "--include_path", str(tasks), "--tasks", "own_choices", "--limit", "1"]
    monkeypatch.setattr(sys, "argv", [*given, "--model_args", f"library={built.library.root},mode=fast,top_k=2"])
    assert harness.main() == 0
    assert "own_choices" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", [*given, "--model_args", f"library={tmp_path}"])
    assert harness.main() == 2
    assert capsys.readouterr().err.strip().splitlines()[-3] == "error: There is no library here."
