"""The local Kafka: started, stopped, suspended and lost. What needs no real Kafka is shown with a stand-in for Java."""

import json
import os
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from famulus.testing.kafka_broker import KAFKA_VERSION, KafkaBroker, KafkaBrokerError
from famulus.testing.kafka_node import answers
from famulus.testing.kafka_process import fingerprint
from famulus.testing.kafka_settings import free_ports

METADATA, SASL_HANDSHAKE, API_VERSIONS, CREATE_TOPICS, SASL_AUTHENTICATE = 3, 17, 18, 19, 36


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-P", "-m", "famulus.testing.kafka_broker", *arguments]


def ask(stream: socket.socket, key: int, version: int, body: bytes) -> bytes:
    """One request of the Kafka protocol, and the body of its answer."""
    request = struct.pack(">hhih", key, version, 7, -1) + body
    stream.sendall(struct.pack(">i", len(request)) + request)
    with stream.makefile("rb") as answer:
        length, correlation = struct.unpack(">ii", answer.read(8))
        assert correlation == 7
        return answer.read(length - 4)


def connect(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), 20)


def text(value: str) -> bytes:
    return struct.pack(">h", len(value)) + value.encode()


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


# A real one.


@pytest.mark.slow
def test_it_answers(own_kafka_broker: KafkaBroker) -> None:
    assert own_kafka_broker.url == f"kafka://{own_kafka_broker.address}"
    with connect(own_kafka_broker.address) as stream:
        answer = ask(stream, API_VERSIONS, 0, b"")
    error, number = struct.unpack(">hi", answer[:6])
    known = [struct.unpack(">h", answer[at : at + 2])[0] for at in range(6, 6 + 6 * number, 6)]
    assert error == 0
    assert {METADATA, CREATE_TOPICS} <= set(known)


@pytest.mark.slow
def test_stopped_and_started_it_has_its_port_and_data(own_kafka_broker: KafkaBroker) -> None:
    broker = own_kafka_broker
    topic = text("kept") + struct.pack(">ihii", 1, 1, 0, 0)  # one partition, one replica
    with connect(broker.address) as stream:
        ask(stream, CREATE_TOPICS, 2, struct.pack(">i", 1) + topic + struct.pack(">i?", 20_000, False))
    address, pid = broker.address, broker.pid

    broker.stop_process()
    assert fingerprint(pid) is None
    assert not answers(address)
    broker.start_process()

    assert (broker.address, broker.running) == (address, True)
    with connect(address) as stream:
        assert text("kept") in ask(stream, METADATA, 1, struct.pack(">i", -1))


@pytest.mark.slow
def test_suspended_it_is_silent_and_goes_on_where_it_was(own_kafka_broker: KafkaBroker) -> None:
    own_kafka_broker.suspend()
    try:
        assert not answers(own_kafka_broker.address, patience=0.2)
    finally:
        own_kafka_broker.resume()
    assert answers(own_kafka_broker.address, patience=20.0)


@pytest.mark.slow
def test_tls_and_sasl(kafka_jars: Path) -> None:
    with KafkaBroker(listeners=["SSL", "SASL_PLAINTEXT", "SASL_SSL"], users={"ann": "secret"}) as broker:
        assert broker.ca is not None
        context = ssl.create_default_context(cafile=str(broker.ca))
        for listener in ("SSL", "SASL_SSL"):
            plain = connect(broker.address_of(listener))
            with context.wrap_socket(plain, server_hostname="127.0.0.1") as stream:
                assert ask(stream, API_VERSIONS, 0, b"")[:2] == b"\0\0"

        errors = {}
        for password in ("secret", "wrong"):
            login = b"\0ann\0" + password.encode()
            with connect(broker.address_of("SASL_PLAINTEXT")) as stream:
                assert ask(stream, SASL_HANDSHAKE, 1, text("PLAIN"))[:2] == b"\0\0"
                answer = ask(stream, SASL_AUTHENTICATE, 0, struct.pack(">i", len(login)) + login)
            errors[password] = struct.unpack(">h", answer[:2])[0]
        assert errors == {"secret": 0, "wrong": 58}  # SASL_AUTHENTICATION_FAILED


@pytest.mark.slow
def test_two_starts_at_once_are_one_broker(kafka_jars: Path, tmp_path: Path) -> None:
    at = ["--directory", str(tmp_path / "broker")]
    starts = [subprocess.Popen(command("start", *at), stdout=subprocess.PIPE, text=True) for _ in range(2)]
    told = {start.communicate()[0] for start in starts}
    try:
        assert [start.returncode for start in starts] == [0, 0]
        (address,) = told
        assert answers(address.strip())
        status = subprocess.run(command("status", *at), capture_output=True, text=True, check=True).stdout
        assert status.startswith(f"{address.strip()} runs (pid ")
        pid = json.loads((tmp_path / "broker" / "broker.json").read_text(encoding="utf-8"))["pid"]
        assert fingerprint(pid)
    finally:
        stopped = subprocess.run(command("stop", *at), capture_output=True, text=True, check=True)
    assert stopped.stderr == f"stopped {address.strip()} (pid {pid})\n"
    assert fingerprint(pid) is None
    assert subprocess.run(command("status", *at), capture_output=True, check=False).returncode == 3
    assert subprocess.run(command("stop", *at), capture_output=True, text=True, check=True).stderr == "no broker runs\n"


# A stand-in: it answers one question as Kafka does, or does what MODE says.

STAND_IN = """#!{python} -IS
import os, re, socket, struct, sys
if "-version" in sys.argv:
    print('openjdk version "17.0.1"', file=sys.stderr)
    sys.exit()
if "format" in sys.argv:
    sys.exit()
settings = open(sys.argv[-1]).read()
print("stand-in starts", flush=True)
mode = os.environ.get("MODE", "")
if mode == "dies" or mode == "races" and not os.path.exists(os.environ["RACED"]):
    mode == "races" and open(os.environ["RACED"], "w").close()
    sys.exit("java.net.BindException: Address already in use" if mode == "races" else "out of luck")
server = socket.create_server(("127.0.0.1", int(re.search("listeners=PLAINTEXT://127.0.0.1:([0-9]+)", settings)[1])))
while True:
    stream = server.accept()[0]
    stream.recv(100)
    mode == "silent" or stream.sendall(struct.pack(">iii", 8, 1, 1))
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For this test, `java` is the stand-in, and Kafka is in the cache."""
    java = tmp_path / "jdk" / "bin" / "java"
    java.parent.mkdir(parents=True)
    java.write_text(STAND_IN.replace("{python}", sys.executable), encoding="utf-8")
    java.chmod(0o755)
    (tmp_path / "cache" / f"kafka-{KAFKA_VERSION}").mkdir(parents=True)
    monkeypatch.setenv("FAMULUS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "jdk"))


@pytest.mark.usefixtures("stand_in")
def test_stop_leaves_no_process_and_no_directory() -> None:
    with KafkaBroker() as broker:
        pid, home = broker.pid, broker.home
        assert home is not None
        assert repr(broker) == f"<KafkaBroker {broker.address} pid {pid} running>"
    assert fingerprint(pid) is None
    assert not home.exists()
    assert repr(broker) == "<KafkaBroker not started>"


@pytest.mark.usefixtures("stand_in")
def test_a_directory_that_was_asked_for_stays(tmp_path: Path) -> None:
    with KafkaBroker(directory=tmp_path / "kept", settings={"num.partitions": "7"}) as broker:
        pid = broker.pid
    assert fingerprint(pid) is None
    assert "num.partitions=7\n" in (tmp_path / "kept" / "server.properties").read_text(encoding="utf-8")


@pytest.mark.usefixtures("stand_in")
def test_a_killed_broker_is_reported_with_the_end_of_its_log() -> None:
    with KafkaBroker() as broker:
        broker.check()
        os.kill(broker.pid, signal.SIGKILL)
        until(lambda: not broker.running)
        assert "ended" in repr(broker)
        with pytest.raises(KafkaBrokerError, match=r"(?s)has ended by itself.*broker\.log:\n    stand-in starts"):
            broker.check()
        with pytest.raises(KafkaBrokerError, match="has ended by itself"):
            broker.suspend()


@pytest.mark.usefixtures("stand_in")
def test_one_that_ends_before_it_answers_is_reported_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODE", "dies")
    broker = KafkaBroker()
    with pytest.raises(KafkaBrokerError, match=r"(?s)ended before it answered.*    out of luck"):
        broker.start()
    assert broker.home is None


@pytest.mark.usefixtures("stand_in")
def test_one_that_does_not_answer_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODE", "silent")
    broker = KafkaBroker(patience=0.5)
    with pytest.raises(KafkaBrokerError, match=r"(?s)did not answer within 0.5 s.*stand-in starts"):
        broker.start()
    assert not broker.running


@pytest.mark.usefixtures("stand_in")
def test_a_port_lost_to_somebody_else_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODE", "races")
    monkeypatch.setenv("RACED", str(tmp_path / "raced"))
    with KafkaBroker() as broker:
        assert answers(broker.address)
        assert broker.log.read_text(encoding="utf-8").count("stand-in starts") == 2


@pytest.mark.usefixtures("stand_in")
def test_a_port_that_was_asked_for_and_is_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", free_ports(1)[0])) as other:
        port = other.getsockname()[1]
        with pytest.raises(KafkaBrokerError, match=f"port {port} of 127.0.0.1 is in use"):
            KafkaBroker(port=port).start()


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("victim", ["parent", "supervisor"])
def test_it_does_not_outlive_whoever_started_it(victim: str) -> None:
    program = (
        "import time\nfrom famulus.testing.kafka_broker import KafkaBroker\n"
        "b = KafkaBroker()\nb.start()\nprint(b.pid, b._process._supervisor.pid, b.home, flush=True)\ntime.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-P", "-c", program], stdout=subprocess.PIPE, text=True)
    with parent:
        assert parent.stdout is not None
        pid, supervisor, home = parent.stdout.readline().split()
        assert fingerprint(int(pid))
        os.kill(parent.pid if victim == "parent" else int(supervisor), signal.SIGKILL)
        until(lambda: fingerprint(int(pid)) is None)
        if victim == "parent":
            until(lambda: not Path(home).exists())
        parent.kill()
    shutil.rmtree(home, ignore_errors=True)  # nobody was left to remove it when the supervisor was killed


@pytest.mark.usefixtures("stand_in")
def test_a_stranger_with_the_recorded_pid_is_left_alone(tmp_path: Path) -> None:
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    record = {
        "address": "127.0.0.1:1",
        "pid": stranger.pid,
        "mark": "another",
        "home": str(tmp_path),
        "temporary": False,
    }
    file = tmp_path / "broker.json"
    file.write_text(json.dumps(record), encoding="utf-8")
    try:
        done = subprocess.run(command("stop", "--directory", str(tmp_path)), capture_output=True, text=True, check=True)
        assert done.stderr == "no broker runs\n"
        assert stranger.poll() is None
        assert not file.exists()
    finally:
        stranger.kill()
        stranger.wait()


@pytest.mark.usefixtures("stand_in")
def test_run_ends_with_its_signal() -> None:
    with subprocess.Popen(command("run"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert answers(address)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 128 + signal.SIGTERM
    assert not answers(address)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"port": 70000}, "port=70000: expected 1 to 65535"),
        ({"listeners": ["SASL_SSL"]}, "SASL needs users"),
        ({"users": {"ann": 'a"b'}}, "letters, digits"),
    ],
)
def test_options_are_checked_where_they_are_given(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KafkaBroker(**options)  # type: ignore[arg-type]  # wrong on purpose


# The fixtures, in a suite of their own.


@pytest.fixture
def suite(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makeconftest('pytest_plugins = ["famulus.testing.kafka"]\n')
    pytester.makepyfile("def test_url(kafka_broker):\n    assert kafka_broker.url.startswith('kafka://127.0.0.1:')\n")
    return pytester


def run(suite: pytest.Pytester) -> pytest.RunResult:
    return suite.runpytest_subprocess("-p", "no:cacheprovider", "-p", "no:cov", "-rs")


@pytest.mark.usefixtures("stand_in")
def test_the_fixture_starts_a_broker(suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FAMULUS_TEST_KAFKA", raising=False)
    run(suite).assert_outcomes(passed=1)


@pytest.mark.usefixtures("stand_in")
def test_the_fixture_takes_a_running_one(suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    with KafkaBroker() as broker:
        address = broker.address
        monkeypatch.setenv("FAMULUS_TEST_KAFKA", address)
        monkeypatch.setenv("JAVA_HOME", "nowhere")
        run(suite).assert_outcomes(passed=1)
    result = run(suite)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([f"*FAMULUS_TEST_KAFKA={address}: no Kafka broker answers there*"])


def test_without_java_the_fixture_skips_and_in_ci_fails(
    suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FAMULUS_TEST_KAFKA", "FAMULUS_CI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("JAVA_HOME", "nowhere")
    result = run(suite)
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED*no local Kafka: *no java in JAVA_HOME=nowhere: install a Java 17 runtime*"])
    monkeypatch.setenv("FAMULUS_CI", "1")
    run(suite).assert_outcomes(errors=1)


@pytest.mark.usefixtures("stand_in")
def test_a_failed_test_shows_the_end_of_the_log(suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FAMULUS_TEST_KAFKA", raising=False)
    suite.makepyfile(
        "import os, time\ndef test_kills(kafka_broker):\n    os.kill(kafka_broker.pid, 9)\n"
        "    while kafka_broker.running:\n        time.sleep(0.02)\n    assert False\n"
    )
    result = run(suite)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*Kafka has ended by itself*", "*stand-in starts"])


def test_the_port_is_none_of_those_for_outgoing_connections() -> None:
    ports = free_ports(3)
    assert len(set(ports)) == 3
    assert all(15000 <= port < 32000 for port in ports)
