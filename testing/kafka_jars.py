"""Where a local Kafka comes from: Java on this machine, jars through Maven into a cache. `kafka_broker` asks.

Nothing is downloaded when a module is imported, and each download happens once per machine and user.
"""

import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

__all__ = ["KAFKA_VERSION", "KafkaBrokerError", "MissingToolError", "cache_directory", "find_java", "jars", "locked"]

KAFKA_VERSION = "4.1.1"

_JAVA = 17  # what the brokers of Kafka 4 need (KIP-1013)
_ARTIFACTS = {
    "org.apache.kafka:kafka_2.13": KAFKA_VERSION,
    "org.apache.logging.log4j:log4j-slf4j-impl": "2.24.3",  # Kafka 4.1 is built with Log4j 2.24 and SLF4J 1.7
}


class KafkaBrokerError(Exception):
    """A local Kafka cannot be had, or has ended. The message says what to do next, or holds the end of its log."""


class MissingToolError(KafkaBrokerError):
    """Java or Maven is not there, or too old: a reason to skip a test, where the others are reasons to fail it."""


def cache_directory() -> Path:
    """`$FAMULUS_CACHE`, or `famulus` in the user's cache directory (XDG Base Directory Specification)."""
    if own := os.environ.get("FAMULUS_CACHE"):
        return Path(own).absolute()
    home = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(home) if os.path.isabs(home) else Path.home() / ".cache") / "famulus"


def find_java() -> Path:
    """Path of a `java` that is new enough: the one of `JAVA_HOME`, else the one on the path.

    Raises:
        MissingToolError: there is none.
    """
    advice = f"install a Java {_JAVA} runtime (on Debian and Ubuntu: apt install openjdk-{_JAVA}-jre-headless)"
    home = os.environ.get("JAVA_HOME")
    found = shutil.which("java", path=os.path.join(home, "bin")) if home else shutil.which("java")
    if found is None:
        where = f"in JAVA_HOME={home}" if home else "on the path"
        raise MissingToolError(f"a local Kafka needs Java, and there is no java {where}: {advice}")
    told = subprocess.run([found, "-version"], capture_output=True, text=True, check=False)
    version = re.search(r'version "(?:1\.)?(\d+)', told.stderr)
    if told.returncode != 0 or version is None:
        raise MissingToolError(f"{found} -version failed: {advice}\n{told.stderr.strip()}")
    if int(version[1]) < _JAVA:
        raise MissingToolError(f"Kafka {KAFKA_VERSION} needs Java {_JAVA}, and {found} is Java {version[1]}: {advice}")
    return Path(found)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def jars(say: Callable[[str], None] = _say) -> Path:
    """The directory with Kafka's jars; the first call ever downloads them (43 MB). Safe in several processes at once.

    Raises:
        MissingToolError: they are not there, and neither is Maven.
        KafkaBrokerError: the download failed.
    """
    cache = cache_directory()
    target = cache / f"kafka-{KAFKA_VERSION}"
    if target.is_dir():
        return target
    with locked(cache / f"{target.name}.lock"):
        if target.is_dir():  # somebody else was faster
            return target
        for left in cache.glob(f"{target.name}.part-*"):  # by somebody who was killed
            shutil.rmtree(left, ignore_errors=True)
        maven = shutil.which("mvn")
        if maven is None:
            raise MissingToolError(
                "the first start of a local Kafka downloads it with Maven, and there is no mvn on the path: "
                "install Maven (on Debian and Ubuntu: apt install maven)"
            )
        say(f"downloading Kafka {KAFKA_VERSION} to {target} (43 MB, once)")
        with tempfile.TemporaryDirectory(prefix=f"{target.name}.part-", dir=cache) as part:
            _download(maven, Path(part)).rename(target)
    return target


def _download(maven: str, part: Path) -> Path:
    """Let Maven copy the jars below `part`; the directory that then has them all."""
    dependencies = "".join(
        f"<dependency><groupId>{name.split(':')[0]}</groupId><artifactId>{name.split(':')[1]}</artifactId>"
        f"<version>{version}</version></dependency>"
        for name, version in _ARTIFACTS.items()
    )
    (part / "pom.xml").write_text(
        '<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>'
        "<groupId>famulus</groupId><artifactId>kafka</artifactId><version>1</version><packaging>pom</packaging>"
        f"<dependencies>{dependencies}</dependencies></project>\n",
        encoding="utf-8",
    )
    goal = ["dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={part / 'jars'}"]
    done = subprocess.run(
        [maven, "--batch-mode", "--quiet", *goal], cwd=part, capture_output=True, text=True, check=False
    )
    if done.returncode != 0 or not list((part / "jars").glob("kafka_*.jar")):
        told = "\n".join((done.stdout + done.stderr).strip().splitlines()[:12])
        raise KafkaBrokerError(
            f"Maven could not download Kafka {KAFKA_VERSION} (exit code {done.returncode}). "
            f"Behind a proxy or with a mirror, set it in ~/.m2/settings.xml. It said:\n{told}"
        )
    return part / "jars"


@contextlib.contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold a lock between processes. The system lets go of it when its holder ends, in whatever way."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
