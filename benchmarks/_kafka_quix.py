"""The programs of `kafka_agents.py` for quixstreams, in an environment of its own."""

from __future__ import annotations

import tempfile
from typing import Any

from _kafka_meter import RAISE, Meter, task
from quixstreams import Application  # type: ignore[import-not-found, unused-ignore]  # see `_environments.py`


def main() -> None:
    job, meter = task(), Meter()
    meter.start()
    app = Application(
        broker_address=job.address,
        consumer_group=job.group,
        auto_offset_reset="earliest",
        auto_create_topics=False,
        loglevel="WARNING",
        state_dir=tempfile.gettempdir(),
    )

    def count(order: dict[str, Any]) -> None:
        if not meter.count:
            meter.see_first()
        meter.count += 1
        meter.cents += order["cents"]
        if meter.count == job.messages:
            meter.see_last()
            app.stop()

    def change(order: dict[str, Any]) -> None:
        count(order)
        order["cents"] += RAISE

    orders = app.dataframe(app.topic(job.topic, value_deserializer="json"))
    if job.mode == "read":
        orders.update(count)
    else:
        orders.update(change).to_topic(app.topic(job.output, value_serializer="json"))
    app.run()  # returns when it has flushed and committed
    meter.report()


if __name__ == "__main__":
    main()
