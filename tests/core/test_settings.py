"""Settings: frozen, validated at birth with a worded error, one form in Python, YAML and JSON."""

from __future__ import annotations

import json
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError, model_validator

from asterism.core.errors import SettingsError, StorageError, UnknownName
from asterism.core.settings import Settings, read_mapping


class Own(Settings):
    """Some settings."""

    top_k: int = Field(default=3, ge=1)
    """Specialists kept."""
    layers: int | tuple[int, ...] | Literal["all"] = "all"
    """Blocks composed."""
    scale: float = 1.0
    """Factor."""

    @model_validator(mode="after")
    def _scale_of_all(self):
        if self.scale != 1 and self.layers != "all":
            raise ValueError("a scale needs layers: all")
        if self.top_k == 777:
            raise ValueError("that many are unlucky")
        return self


def told(call, *args, **values):
    with pytest.raises((SettingsError, UnknownName, StorageError)) as caught:
        call(*args, **values)
    return str(caught.value)


def test_settings_are_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        Own().top_k = 2  # pyright: ignore[reportAttributeAccessIssue]


def test_a_value_out_of_range_names_field_and_help():
    want = "Own.top_k is not usable: Input should be greater than or equal to 1.\n  met:  0\n  mend: Specialists kept."
    assert told(Own, top_k=0) == want


def test_a_value_of_the_wrong_type():
    assert told(Own, scale="much").startswith("Own.scale is not usable: Input should be a valid number")
    assert told(Own, scale=float("nan")) == "Own.scale is not usable: Input should be a finite number.\n  met:  nan\n  mend: Factor."
    assert "met:  inf" in told(Own, scale=float("inf"))


def test_a_union_names_every_way():
    want = (
        "Own.layers is not usable: Input should be a valid integer, unable to parse string as an integer, "
        "or: Input should be a valid tuple, or: Input should be 'all'.\n  met:  'most'\n  mend: Blocks composed."
    )
    assert told(Own, layers="most") == want


def test_an_unknown_field_offers_the_nearest():
    assert told(Own, topk=3) == "No such setting of Own.\n  met:  'topk'\n  mend: did you mean 'top_k'?"
    assert told(Own, zebra=3) == "No such setting of Own.\n  met:  'zebra'\n  mend: choose from layers, scale, top_k"


def test_fields_that_do_not_fit_together():
    assert told(Own, scale=2, layers=4) == "Own: a scale needs layers: all.\n  met:  layers 4, scale 2\n  mend: change one of these"
    assert told(Own().changed, scale=2, layers=4).endswith("met:  layers 4, scale 2\n  mend: change one of these")
    assert told(Own().changed, top_k=777).endswith("met:  top_k 777\n  mend: change one of these")  # where the message names no fields


def test_a_changed_copy_is_validated_again():
    first = Own(top_k=2)
    assert (first.changed(scale=0.5), first) == (Own(top_k=2, scale=0.5), Own(top_k=2))
    assert "a scale needs" in told(first.changed, scale=2, layers=(1, 2))
    assert "did you mean" in told(first.changed, scales=2)


@pytest.mark.parametrize(("name", "text"), [("s.yaml", "top_k: 2\nlayers: [1, 3]\n"), ("s.json", '{"top_k": 2, "layers": [1, 3]}')])
def test_files_and_python_are_one(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert Own.read(tmp_path / name) == Own(top_k=2, layers=(1, 3))


def test_a_number_in_yamls_scientific_form(tmp_path):
    (tmp_path / "s.yaml").write_text("scale: 5e-5\n")  # YAML 1.1 calls this a string
    assert Own.read(tmp_path / "s.yaml").scale == 5e-5


def test_files_that_cannot_be_read(tmp_path):
    path = tmp_path / "s.yaml"
    assert told(Own.read, path).startswith(f"The settings file cannot be read.\n  met:  {path}: [Errno 2] No such file")
    path.write_bytes(b"scale: \xff\n")
    assert "The settings file cannot be read" in told(Own.read, path)
    path.write_text("a: [1, 2\n")
    message = told(Own.read, path)
    assert message.startswith("The settings file cannot be read")
    assert len(message.splitlines()) == 3
    path.write_text("- a\n- b\n")
    assert told(Own.read, path) == "A settings file holds one mapping.\n  met:  list\n  mend: write `field: value` lines"
    path.write_text("top: 3\n")
    assert "did you mean 'top_k'?" in told(Own.read, path)


def test_no_code_is_run_from_a_settings_file(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text(f"top_k: !!python/object/apply:pathlib.Path.touch [{tmp_path / 'made'}]\n")
    assert "cannot be read" in told(read_mapping, path)
    assert not (tmp_path / "made").exists()


@given(st.integers(1, 9), st.one_of(st.just("all"), st.lists(st.integers(0, 5)).map(tuple)))
def test_equal_settings_have_equal_digests_and_survive_json(top_k, layers):
    settings = Own(top_k=top_k, layers=layers)
    again = Own(**json.loads(json.dumps(settings.model_dump(mode="json"))))
    assert again == settings
    assert again.digest() == settings.digest() == Own(layers=layers, top_k=top_k).digest()
    assert settings.digest() != settings.changed(top_k=top_k + 1).digest()


def test_every_setting_of_the_package_has_its_help():
    from asterism.compose.settings import CompositionSettings
    from asterism.constellation.settings import IndexSettings, MixtureSettings
    from asterism.evaluate.settings import EvaluationSettings
    from asterism.models.settings import TrainingSettings

    for kind in (CompositionSettings, IndexSettings, MixtureSettings, EvaluationSettings, TrainingSettings):
        assert kind.model_fields
        assert [name for name, field in kind.model_fields.items() if not field.description] == []
        kind()
