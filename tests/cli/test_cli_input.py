"""What a user can get wrong on the command line: one line that says what was expected, and exit code 2."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import famulus
from famulus.cli import make_program
from famulus.cli.output import mask

SHOP = """
import famulus

app = famulus.App("shop")
returns = famulus.App("returns")
number = 3
"""


class Call:
    """Calls of the program in this process, over modules that the test writes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def write(self, name: str, source: str) -> Path:
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
        return path

    def __call__(self, *arguments: str, app: famulus.App | None = None, **environment: str) -> Result:
        return CliRunner().invoke(make_program(app), arguments, prog_name="famulus", env=environment)

    def refused(self, *arguments: str, **environment: str) -> str:
        """The one line with which a call is refused."""
        result = self(*arguments, app=None, **environment)
        assert result.exit_code == 2, result.output
        assert result.stdout == ""
        assert result.stderr.startswith("Error: ")
        assert result.stderr.count("\n") == 1
        return result.stderr.removeprefix("Error: ").removesuffix("\n")


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delenv("FAMULUS_APP", raising=False)
    call = Call(tmp_path)
    call.write("shop.py", SHOP)
    return call


def test_the_app_is_app_in_the_module_or_the_attribute_named(call: Call) -> None:
    assert call("-A", "shop", "agents").stdout == "app shop has no agents\n"
    assert call("-A", "shop:returns", "agents").stdout == "app returns has no agents\n"
    assert call("agents", FAMULUS_APP="shop:returns").stdout == "app returns has no agents\n"


def test_the_app_of_a_package_may_stand_in_its_module_app(call: Call) -> None:
    call.write("parcels/__init__.py", "")
    call.write("parcels/app.py", 'import famulus\napp = famulus.App("parcels")\n')
    assert call("-A", "parcels", "agents").stdout == "app parcels has no agents\n"
    assert call("-A", "parcels.app", "agents").stdout == "app parcels has no agents\n"


def test_an_attribute_may_be_reached_through_others(call: Call) -> None:
    call.write("held.py", 'import famulus\nclass Config:\n    main = famulus.App("held")\n')
    assert call("-A", "held:Config.main", "agents").stdout == "app held has no agents\n"


def test_the_work_directory_is_where_modules_are_looked_for(call: Call) -> None:
    call.write("below/deep.py", 'import famulus\napp = famulus.App("deep")\n')
    assert call("-W", "below", "-A", "deep", "agents").stdout == "app deep has no agents\n"


def test_a_command_without_an_app_says_how_to_name_one(call: Call) -> None:
    assert call.refused("worker") == (
        "which app? expected -A module[:attribute] before the command, or FAMULUS_APP in the environment"
    )


def test_a_module_that_is_not_there(call: Call) -> None:
    assert call.refused("-A", "shops", "worker") == (
        f"-A shops: there is no module 'shops' in {call.directory} or on Python's path; "
        "expected module or module:attribute, and -W DIRECTORY if it is elsewhere"
    )
    assert "there is no module 'shop.sub'" in call.refused("-A", "shop.sub", "worker")


@pytest.mark.parametrize("wanted", ["shop.py", "./shop", ".shop", "shop.", ":app"])
def test_a_file_or_nothing_in_place_of_a_module(call: Call, wanted: str) -> None:
    assert call.refused("-A", wanted, "worker") == (
        f"-A {wanted}: expected module or module:attribute, as in `-A shop` or `-A shop.main:app`"
    )


def test_an_attribute_that_is_not_there(call: Call) -> None:
    assert call.refused("-A", "shop:orders", "worker") == (
        "-A shop:orders: module 'shop' has no attribute 'orders'; its Apps are shop:app, shop:returns"
    )


def test_an_attribute_that_is_no_app(call: Call) -> None:
    assert call.refused("-A", "shop:number", "worker") == (
        "-A shop:number: shop:number is of type int, expected a famulus.App; its Apps are shop:app, shop:returns"
    )


def test_a_module_without_an_app(call: Call) -> None:
    call.write("empty.py", "")
    assert call.refused("-A", "empty", "worker") == (
        "-A empty: module 'empty' has no attribute 'app'; "
        "the module holds no App: expected `app = famulus.App('name')` in it"
    )


@pytest.mark.parametrize(
    ("source", "place", "reason"),
    [
        ("x = 1\ny = 1 / 0\n", "bad.py:2", "ZeroDivisionError: division by zero"),
        ("import nothing_of_that_name\n", "bad.py:1", "ModuleNotFoundError: No module named"),
        ("x = (\n", "bad.py:1", "SyntaxError: "),
        ("import json\n\njson.loads('{')\n", "bad.py:3", "JSONDecodeError: "),
        ("import famulus\napp = famulus.App('bad', vesion=2)\n", "bad.py:2", "there is no setting 'vesion'"),
    ],
)
def test_a_module_that_fails_when_imported(call: Call, source: str, place: str, reason: str) -> None:
    path = call.write("bad.py", source)
    line = call.refused("-A", "bad", "worker")
    assert line.startswith(f"-A bad: importing it failed at {path.with_name(place)}: {reason}")


def test_a_module_that_starts_itself_when_imported(call: Call) -> None:
    call.write("eager.py", "import sys\nsys.exit()\n")
    assert call.refused("-A", "eager", "worker") == (
        f"-A eager: the module ended the process when it was imported, at {call.directory / 'eager.py'}:2; "
        "expected `if __name__ == '__main__':` before `app.main()`"
    )


def test_debug_shows_the_traceback_of_an_error(call: Call) -> None:
    call.write("bad.py", "1 / 0\n")
    result = call("--debug", "-A", "bad", "worker")
    assert result.exit_code == 2
    assert "ZeroDivisionError: division by zero\n\nThe above exception" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("Error: -A bad: importing it failed")


@pytest.mark.parametrize("command", ["worker", "send"])
def test_a_broker_that_nobody_knows(call: Call, command: str) -> None:
    arguments = {"worker": ["worker"], "send": ["send", "orders", "1"]}[command]
    line = call.refused("-A", "shop", "--broker", "rabbit://ada:s3cret@one", *arguments)
    assert re.match(r"broker='rabbit://ada:\*\*\*@one': .*installed: .*memory://", line)


def test_a_setting_that_is_not_there(call: Call) -> None:
    expected = "there is no setting 'topic_partition'; did you mean 'topic_partitions'?"
    assert call.refused("-A", "shop", "--set", "topic_partition=3", "worker") == expected


def test_a_setting_that_is_no_number(call: Call) -> None:
    assert call.refused("-A", "shop", "--set", "topic_partitions=many", "worker") == (
        "--set topic_partitions='many': expected a whole number"
    )
    assert call.refused("-A", "shop", "worker", FAMULUS_TOPIC_PARTITIONS="many") == (
        "environment variable FAMULUS_TOPIC_PARTITIONS='many': expected a whole number"
    )


def test_a_setting_out_of_bounds(call: Call) -> None:
    expected = "setting topic_partitions=0: expected a whole number of at least 1"
    assert call.refused("-A", "shop", "--set", "topic_partitions=0", "settings") == expected
    assert call.refused("-A", "shop", "settings", FAMULUS_TOPIC_PARTITIONS="0") == expected


def test_a_setting_without_a_value(call: Call) -> None:
    assert call.refused("-A", "shop", "--set", "version", "worker") == "--set version: expected NAME=VALUE"


def test_a_log_file_that_cannot_be_written(call: Call) -> None:
    line = call.refused("-A", "shop", "worker", "-f", "nowhere/worker.log")
    assert line.startswith("--logfile nowhere/worker.log: expected a file that can be written")


def test_a_log_level_that_is_none(call: Call) -> None:
    result = call("-A", "shop", "worker", "-l", "loud")
    assert result.exit_code == 2
    assert "'loud' is not one of 'debug', 'info'" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "environment", "expected"),
    [
        (["-A", "shopp", "worker"], {}, "-A shopp: there is no module 'shopp'"),
        (["-A", "shop", "--broker", "rabbit://", "worker"], {}, "broker='rabbit://': no transport for 'rabbit'"),
        (["-A", "shop", "--set", "version=x", "worker"], {}, "--set version='x': expected a whole number"),
        (["-A", "shop", "worker"], {"FAMULUS_VERSION": "x"}, "environment variable FAMULUS_VERSION='x'"),
        (
            ["-A", "shop", "--broker", "memory://", "send", "orders", "1"],
            {},
            "broker memory:// lives inside one process",
        ),
    ],
)
def test_the_installed_program_says_it_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    environment: dict[str, str],
    expected: str,
) -> None:
    (tmp_path / "shop.py").write_text(SHOP)
    monkeypatch.delenv("FAMULUS_APP", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    program = [str(Path(sys.executable).with_name("famulus")), *arguments]
    done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"Error: {expected}")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["worker", "agents", "send", "settings"])
def test_each_command_explains_itself_with_examples(call: Call, command: str) -> None:
    for option in ("-h", "--help"):
        result = call(command, option)
        assert result.exit_code == 0
        assert result.stdout.startswith(f"Usage: famulus {command} [OPTIONS]")
        assert f"\n  Examples:\n    famulus -A shop {command}" in result.stdout


def test_the_program_explains_itself(call: Call) -> None:
    for arguments in ([], ["--help"]):
        result = call(*arguments)
        assert result.exit_code == 0
        assert "-A, --app MODULE[:ATTRIBUTE]" in result.stdout
        assert "    famulus -A shop worker -l info\n" in result.stdout


def test_bound_to_an_app_it_takes_no_other(call: Call) -> None:
    app = famulus.App("bound")
    assert call("agents", app=app).stdout == "app bound has no agents\n"
    assert "--app" not in call(app=app).stdout
    assert call("-A", "shop", "agents", app=app).exit_code == 2


def test_the_version(call: Call) -> None:
    assert re.fullmatch(r"famulus \d+\.\d+\.\d+ \(trio [\d.]+, Python [\d.]+\w*\)\n", call("--version").stdout)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("kafka://one:9092,two:9092", "kafka://one:9092,two:9092"),
        ("kafka://ada:p@ss:word@one:9092", "kafka://ada:***@one:9092"),
        ("kafka://one?SASL_PASSWORD=p&client=x", "kafka://one?SASL_PASSWORD=***&client=x"),
    ],
)
def test_no_password_is_shown(url: str, shown: str) -> None:
    assert mask(url) == shown
