"""Losses of responses and answers: those of one example alone, whatever stands beside it in a batch."""

from __future__ import annotations

import pytest
import torch

from asterism.core.errors import DataError, SettingsError
from asterism.models.examples import Example, encoded, prompt_ids
from asterism.models.responses import answers, ending_tokens, prompt_of, response_losses
from tests.tiny import LENGTH, PROBES, tiny_model, tiny_tokenizer

EXAMPLES = [Example(text[:cut], text[cut:]) for text, cut in zip(PROBES["medical"], (12, 30, 7, 20, 41, 9, 16), strict=True)]


@pytest.fixture(scope="module", params=["gpt2", "llama", "mistral"])
def model(request):
    return tiny_model(request.param, 3)


def test_losses_are_the_negative_log_probabilities_of_the_response(model):
    tokenizer = tiny_tokenizer()
    found = response_losses(model, tokenizer, EXAMPLES, max_tokens=80)
    for example, losses in zip(EXAMPLES, found, strict=True):
        ids, prompt = encoded(tokenizer, example, LENGTH)
        with torch.no_grad():
            likely = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0].double(), dim=-1)
        wanted = [-float(likely[place - 1, ids[place]]) for place in range(prompt, len(ids))]
        assert losses.tolist() == pytest.approx(wanted, abs=1e-4)
        assert ids[-1] == tokenizer.eos_token_id


def test_a_text_without_a_prompt_has_a_loss_from_its_second_token_on():
    tokenizer = tiny_tokenizer()
    (losses,) = response_losses(tiny_model("gpt2"), tokenizer, [Example("", "The old house")])
    assert len(losses) == len(encoded(tokenizer, Example("", "The old house"), LENGTH)[0]) - 1


def test_answers_are_greedy_and_their_own(model):
    tokenizer = tiny_tokenizer()
    found = answers(model, tokenizer, EXAMPLES, max_new_tokens=7, stop=None, max_tokens=90)
    for example, text in zip(EXAMPLES, found, strict=True):
        ids, new = prompt_ids(tokenizer, example), []
        for _ in range(7):
            with torch.no_grad():
                new.append(int(model(input_ids=torch.tensor([ids + new])).logits[0, -1].argmax()))
            if new[-1] == tokenizer.eos_token_id:
                break
        assert text == tokenizer.decode(new, skip_special_tokens=True)


def test_an_answer_ends_before_what_stops_it():
    tokenizer, model = tiny_tokenizer(), tiny_model("gpt2", 3)
    whole = answers(model, tokenizer, EXAMPLES[:3], max_new_tokens=12, stop=None)
    stop = whole[0][len(whole[0]) // 2]
    assert answers(model, tokenizer, EXAMPLES[:3], max_new_tokens=12, stop=stop) == [text.split(stop)[0] for text in whole]
    newline = ending_tokens(model, tokenizer, "\n")
    assert tokenizer.eos_token_id in newline
    assert all("\n" in tokenizer.decode([token]) for token in newline - ending_tokens(model, tokenizer))


def test_a_prompt_that_is_too_long_loses_its_beginning():
    tokenizer, example = tiny_tokenizer(), EXAMPLES[1]
    ids = prompt_ids(tokenizer, example)
    assert prompt_of(tokenizer, example, 4) == ids[-4:]
    short = answers(tiny_model("gpt2", 3), tokenizer, [example], max_new_tokens=5, stop=None, max_length=9)
    assert short == answers(tiny_model("gpt2", 3), tokenizer, [Example(tokenizer.decode(ids[-4:]), " x")], max_new_tokens=5, stop=None)


def test_what_cannot_be_answered_is_told():
    tokenizer, model = tiny_tokenizer(), tiny_model("gpt2")
    with pytest.raises(DataError, match="no examples"):
        answers(model, tokenizer, [])
    with pytest.raises(DataError, match="nothing before the answer"):
        answers(model, tokenizer, [Example("", "text")])
    with pytest.raises(SettingsError, match="no room for a prompt"):
        answers(model, tokenizer, EXAMPLES[:1], max_new_tokens=LENGTH)
    broken = tiny_model("gpt2")
    broken.transformer.ln_f.weight.data[0] = torch.nan
    with pytest.raises(DataError, match="not finite"):
        response_losses(broken, tokenizer, EXAMPLES[:1])
