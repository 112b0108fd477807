"""Poison messages among good ones on a real broker, and a worker that is killed in the middle of its retries."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import pytest
import trio

from famulus.testing.kafka import RunningKafka
from famulus.testing.numbered import numbered

pytestmark = [pytest.mark.real_time, pytest.mark.hard_timeout(120)]

SCRIPT = Path(__file__).with_name("poison_app.py")
QUICK = {"broker_session_timeout": 2, "broker_commit_interval": 0.2}
COUNT = 200


async def test_poison_is_buried_and_nothing_else_is_lost_or_committed_unseen(
    kafka_broker: RunningKafka, tmp_path: Path
) -> None:
    name = f"poison-{uuid4().hex[:8]}"
    async with numbered(kafka_broker.url, name=name, script=SCRIPT, directory=tmp_path, partitions=2) as run:
        await run.write(COUNT)
        one = run.start(settings=QUICK)
        await one.wait_for("attempt 2: .*it will be delivered again")
        one.kill()
        two = run.start(settings=QUICK)
        await run.wait_committed()
        assert run.unseen() == 0
        poison = {b"%d" % number for number in range(COUNT) if number % 40 == 7}
        letters = await run.values_of(f"{name}.dead-letter")
        assert set(letters) == poison
        two.stop()
        assert await two.wait() == 0, two.log

        arguments = ["-P", str(SCRIPT), "--broker", kafka_broker.url, "dead-letters", "replay", name, "--yes"]
        environment = {**os.environ, "NUMBERS": name}
        command = [sys.executable, *arguments]
        ran = await trio.run_process(
            command, capture_stdout=True, stderr=subprocess.STDOUT, check=False, env=environment
        )
        assert f"sent back {len(letters)} letters to {name}" in ran.stdout.decode()
