"""The command as a process: fast help, clean streams, exit codes."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess:
    given = [sys.executable, "-m", "asterism", *map(str, arguments)]
    return subprocess.run(given, capture_output=True, text=True, timeout=600, env={**os.environ, **environment})


def test_help_is_instant_and_names_every_command():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ran = run("--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert ran.returncode == 0
    for name in ("demo", "train", "index", "diagnose", "explain", "compose", "generate", "evaluate"):
        assert f"  {name} " in ran.stdout
    busy = (
        after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    )  # wall time is benchmarks/startup.py's: cores are shared here
    assert busy < 0.5


def test_help_of_a_command_loads_no_model_library():
    heavy = "{'torch', 'transformers', 'numpy'} & set(sys.modules)"
    code = f"import sys\nfrom asterism.cli.app import main\ntry: main(['index', '--help'])\nexcept SystemExit: pass\nprint(sorted({heavy}))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert ran.stdout.strip().endswith("[]"), ran.stdout[-300:] + ran.stderr


def test_json_is_the_only_thing_on_stdout(original):
    ran = run("explain", original, "The court heard the surgeon.", "--device", "cpu", "--json")
    assert ran.returncode == 0, ran.stderr
    assert set(json.loads(ran.stdout)["shares"]) <= {"medical", "legal", "code", "science"}
    assert ran.stdout.count("\n") == 1


def test_an_error_is_three_lines_and_exit_2(tmp_path):
    ran = run("diagnose", tmp_path / "nowhere")
    assert ran.returncode == 2
    assert ran.stdout == ""
    assert [line.split(":")[0].strip() for line in ran.stderr.strip().splitlines()] == ["error", "met", "mend"]


def test_the_shell_completes_commands_and_options():
    words = {"_ASTERISM_COMPLETE": "complete_bash", "COMP_WORDS": "asterism in", "COMP_CWORD": "1"}
    assert run(**words).stdout.split() == ["index"]
    words |= {"COMP_WORDS": "asterism index lib --orth", "COMP_CWORD": "3"}
    assert run(**words).stdout.split() == ["--orthogonalisation"]
