"""One definition of a setting serves Python, files and the command line."""

from __future__ import annotations

import json
from typing import Annotated

import pytest
import typer

from asterism.cli.options import Given, command
from asterism.compose.settings import CompositionSettings
from asterism.constellation.settings import IndexSettings, MixtureSettings
from asterism.core.errors import SettingsError, UnknownName
from asterism.evaluate.settings import EvaluationSettings


@command(IndexSettings, CompositionSettings, MixtureSettings, EvaluationSettings, omit=("protocols",))
def probe(name: Annotated[str, typer.Argument()] = "x", *, given: Given):
    """Show what settings come of the options."""
    classes = (IndexSettings, CompositionSettings, MixtureSettings, EvaluationSettings)
    found = {cls.__name__: given.settings(cls).model_dump(mode="json") for cls in classes}
    return {"name": name, "dtype": given.dtype, "seed": given.seed, **found}, lambda: print("for people")


def run(capsys, *arguments: str) -> dict:
    probe([*arguments, "--json"], standalone_mode=False)
    return json.loads(capsys.readouterr().out)


def test_without_options_every_setting_has_its_default(capsys):
    found = run(capsys)
    assert found["IndexSettings"] == IndexSettings().model_dump(mode="json")
    assert found["CompositionSettings"] == CompositionSettings().model_dump(mode="json")
    assert found["EvaluationSettings"] == EvaluationSettings().model_dump(mode="json")


@pytest.mark.parametrize(
    ("option", "value", "where", "name", "want"),
    [
        ("--layers", "4", "CompositionSettings", "layers", 4),
        ("--layers", "0,2", "CompositionSettings", "layers", [0, 2]),
        ("--layers", "2,", "CompositionSettings", "layers", [2]),
        ("--layers", "all", "CompositionSettings", "layers", "all"),
        ("--layer", "3", "IndexSettings", "layer", 3),
        ("--noise", "0.5", "IndexSettings", "noise", 0.5),
        ("--orthogonalisation", "none", "IndexSettings", "orthogonalisation", "none"),
        ("--task-arithmetic", "0.25,2", "EvaluationSettings", "task_arithmetic", [0.25, 2.0]),
        ("--seed", "7", "IndexSettings", "seed", 7),
        ("--top-k", "2", "MixtureSettings", "top_k", 2),
    ],
)
def test_an_option_reaches_its_setting(capsys, option, value, where, name, want):
    assert run(capsys, option, value)[where][name] == want


def test_flags_go_both_ways(capsys):
    assert run(capsys, "--domain-signatures")["IndexSettings"]["domain_signatures"] is True
    assert run(capsys, "--no-ensembles")["EvaluationSettings"]["ensembles"] is False


def test_a_file_gives_settings_and_options_win_over_it(capsys, tmp_path):
    (tmp_path / "own.yaml").write_text("noise: 0.3\ncentring: mean\nseed: 5\nlayers: [1, 2]\n")
    found = run(capsys, "--settings", str(tmp_path / "own.yaml"), "--noise", "0.1")
    assert found["IndexSettings"]["noise"] == 0.1
    assert found["IndexSettings"]["centring"] == "mean"
    assert found["CompositionSettings"]["layers"] == [1, 2]
    assert found["seed"] == found["IndexSettings"]["seed"] == 5


def test_an_unknown_setting_in_a_file_is_named(tmp_path):
    (tmp_path / "own.json").write_text('{"nois": 1}')
    with pytest.raises(UnknownName, match="did you mean 'noise'"):
        probe(["--settings", str(tmp_path / "own.json")], standalone_mode=False)


def test_a_value_out_of_range_is_the_settings_own_error():
    with pytest.raises(SettingsError, match=r"IndexSettings\.noise"):
        probe(["--noise", "-1", "--json"], standalone_mode=False)


def test_without_json_the_table_is_for_people(capsys):
    probe([], standalone_mode=False)
    assert capsys.readouterr().out == "for people\n"


def test_under_json_stray_prints_go_to_stderr(capsys):
    @command()
    def noisy(*, given: Given):
        """Print where nothing should."""
        print("stray")
        return {"a": 1}

    noisy(["--json"], standalone_mode=False)
    told = capsys.readouterr()
    assert (told.out, told.err) == ('{"a": 1}\n', "stray\n")
