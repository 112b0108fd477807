"""What a run tells of itself in numbers."""

import trio

import famulus
from famulus.channels.memory import MemoryBroker


async def test_statistics_tell_how_far_each_partition_has_come(broker: MemoryBroker) -> None:
    app = famulus.App("lags", broker=f"memory://{broker.name}", stream_buffer_maxsize=4)
    numbers = app.topic("numbers", value_type=int, partitions=2)
    go_on = trio.Event()

    @app.agent(numbers)
    async def read(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            if number == 3:
                await go_on.wait()

    zero, one = famulus.TP("numbers", 0), famulus.TP("numbers", 1)
    async with famulus.open_app(app) as running:
        assert set(running.statistics().partitions) == {zero, one}
        for number in range(10):
            await (await numbers.send(number, partition=0))
        await trio.sleep(0.5)
        statistics = running.statistics()
        assert statistics.partitions[zero] == famulus.PartitionStatistics(committed=0, acknowledged=3, highwater=10)
        assert statistics.partitions[zero].lag == statistics.lag == 7
        assert statistics.partitions[one].lag == 0
        go_on.set()
        await trio.sleep(4)
        after = running.statistics()
        assert after.partitions[zero] == famulus.PartitionStatistics(committed=10, acknowledged=10, highwater=10)
        assert after.lag == 0
        broker.faults.lose_member("lags", "lags")
        assert running.statistics().lag == 0
    assert running.statistics().partitions == {}
