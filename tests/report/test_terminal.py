"""The terminal tables: every candidate, the right numbers, at most 100 columns."""

import io
import re

import pytest
from rich.console import Console

from asterism.core.errors import DataError
from asterism.report.terminal import print_results
from tests.report.sample import sample_results


def printed(results, width=100):
    console = Console(width=width, file=io.StringIO())
    print_results(results, console)
    return console.file.getvalue()


@pytest.fixture(scope="module")
def results():
    return sample_results(seeds=(42, 43), single=8, pair=5)


def test_fits_a_hundred_columns_and_cuts_nothing(results):
    lines = printed(results).splitlines()
    assert max(map(len, lines)) <= 100
    assert "…" not in "".join(lines)


def test_a_narrow_console_splits_the_rivals_and_cuts_nothing(results):
    lines = printed(results, width=74).splitlines()
    assert max(map(len, lines)) <= 74
    assert "…" not in "".join(lines)
    assert "\n".join(lines).count("Cross-domain probes, whole") == 2
    heads = [line for line in lines if line.startswith(" candidate")]
    assert sum(line.count("generalist") for line in heads) == 4
    assert sum(line.count("routed") for line in heads) == 4


def test_output_to_a_file_is_not_cut_to_eighty_columns(results, capsys):
    print_results(results)
    assert "…" not in capsys.readouterr().out


def test_one_table_a_protocol_and_task_then_retrieval_and_correlation(results):
    text = printed(results)
    titles = [
        "Cross-domain probes, continuation",
        "Cross-domain probes, whole",
        "Single-domain probes, continuation",
        "Single-domain probes, whole",
    ]
    places = [text.index(title) for title in [*titles, "Retrieval", "Coefficient x activation norm"]]
    assert places == sorted(places)
    for name in results["candidates"]:
        assert len(re.findall(rf"^ {re.escape(name)} +\d\.\d{{3}} ", text, re.MULTILINE)) == 4, name


def test_cells_are_rate_and_interval(results):
    row = next(
        row for row in results["table"]
        if (row["seed"], row["protocol"], row["task"], row["group"], row["candidate"], row["rival"])
        == ("all", "continuation", "cross", "all", "default", "generalist")
    )  # fmt: skip
    line = next(line for line in printed(results).splitlines() if line.startswith(" default"))
    assert line.split()[1] == f"{row['loss']:.3f}"
    assert line.split()[2:4] == [f"{100 * row['rate']:.0f}", f"{100 * row['low']:.0f}-{100 * row['high']:.0f}"]


def test_advice_is_printed_where_there_is_one(results):
    assert "Advice" not in printed(results)
    diagnosis = {"advice": "compose", "reason": "Mean collinearity 0.940."}
    assert "Advice: compose: Mean collinearity 0.940." in printed({**results, "diagnosis": diagnosis})


def test_names_are_no_markup(results):
    text = printed({**results, "retrieval": [{**results["retrieval"][0], "space": "[bold]odd[/bold]"}]})
    assert "[bold]odd[/bold]" in text


def test_a_missing_part_is_an_error():
    with pytest.raises(DataError, match="Results lack a part"):
        printed({})
