"""The programs of `streams.py` for quixstreams, in an environment of its own."""

from __future__ import annotations

import tempfile
from typing import Any

from _kafka_meter import Meter, task
from quixstreams import Application  # type: ignore[import-not-found, unused-ignore]  # see `_environments.py`


def main() -> None:
    job, meter = task(), Meter()
    meter.start()
    app = Application(
        broker_address=job.address,
        consumer_group=job.group,
        auto_offset_reset="earliest",
        auto_create_topics=job.mode == "group_by",  # the topic between
        loglevel="WARNING",
        state_dir=tempfile.gettempdir(),
    )

    def end() -> None:
        meter.see_last()
        app.stop()

    def count(order: dict[str, Any]) -> None:
        if not meter.first:
            meter.see_first()
        meter.count += 1
        meter.cents += order["cents"]
        if meter.count == job.messages:
            end()

    def count_too(order: dict[str, Any]) -> None:
        if not meter.first:
            meter.see_first()
        meter.count += 1
        meter.cents += order["cents"]
        if meter.count == 2 * job.messages:
            end()

    def account(order: dict[str, Any]) -> Any:
        if not meter.first:
            meter.see_first()
        return order["account"]

    orders = app.dataframe(app.topic(job.topic, value_deserializer="json"))
    if job.mode == "read":
        orders.update(count)
    elif job.mode == "two agents":  # two branches
        orders.update(count_too)
        orders.update(count_too)
    elif job.mode == "echo":
        orders.to_topic(app.topic(job.output, value_serializer="json"))
        orders.update(count)
    else:
        orders.group_by(account, name="account").update(count)
    app.run()  # returns when it has flushed and committed
    meter.report()


if __name__ == "__main__":
    main()
