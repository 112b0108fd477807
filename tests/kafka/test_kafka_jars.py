"""Where the local Kafka comes from: Java, Maven, the cache, and what is said when one is missing."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from famulus.testing.kafka_jars import (
    KAFKA_VERSION,
    KafkaBrokerError,
    MissingToolError,
    cache_directory,
    find_java,
    jars,
)


def test_without_java_it_says_what_to_install(tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": str(tmp_path), "FAMULUS_CACHE": str(tmp_path / "cache")}
    environment.pop("JAVA_HOME", None)
    done = subprocess.run(
        [sys.executable, "-P", "-m", "famulus.testing.kafka_broker", "start"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "there is no java on the path: install a Java 17 runtime" in done.stderr


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ('java version "1.8.0_392"', r"needs Java 17, and .*/bin/java is Java 8: install a Java 17 runtime"),
        ("nonsense", "-version failed: install a Java 17 runtime"),
    ],
)
def test_a_java_that_will_not_do_is_named(
    version: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "java").write_text(f"#!/bin/sh\necho '{version}' >&2\n", encoding="utf-8")
    (tmp_path / "bin" / "java").chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(MissingToolError, match=message):
        find_java()


def test_without_maven_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAMULUS_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingToolError, match="no mvn on the path: install Maven"):
        jars()


def test_jars_are_fetched_once_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mvn").write_text(
        "#!/bin/sh\nfor a; do case $a in -DoutputDirectory=*) out=${a#*=};; esac; done\n"
        f"echo called >>{tmp_path}/calls\nsleep 0.2\nmkdir -p $out && touch $out/kafka_2.13-$FAKE.jar\nexit $FAKE_EXIT\n",
        encoding="utf-8",
    )
    (tmp_path / "mvn").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAMULUS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FAKE_EXIT", "1")
    with pytest.raises(KafkaBrokerError, match="Maven could not download"):
        jars(lambda line: None)
    monkeypatch.setenv("FAKE_EXIT", "0")
    (tmp_path / "cache" / f"kafka-{KAFKA_VERSION}.part-killed").mkdir()

    said: list[str] = []
    threads = [threading.Thread(target=jars, args=[said.append]) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(said) == 1
    assert (tmp_path / "calls").read_text(encoding="utf-8") == "called\n" * 2
    left = sorted(path.name for path in (tmp_path / "cache").iterdir())
    assert left == [f"kafka-{KAFKA_VERSION}", f"kafka-{KAFKA_VERSION}.lock"]


def test_the_cache_is_where_the_user_has_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FAMULUS_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory() == tmp_path / "famulus"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # the specification has such a path ignored
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_directory() == tmp_path / ".cache" / "famulus"
