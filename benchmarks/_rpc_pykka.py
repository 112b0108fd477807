"""The ask of pykka, in an environment of its own: ``python _rpc_pykka.py MESSAGES``. Prints seconds, count and checksum."""

import sys
import time
from typing import Any

import pykka  # type: ignore[import-not-found, unused-ignore]  # see `_environments.py`


class Echo(pykka.ThreadingActor):  # type: ignore[misc, unused-ignore]
    def on_receive(self, message: Any) -> Any:
        return message


def main(messages: int) -> None:
    echo = Echo.start()
    for number in range(100):
        echo.ask(number)
    count = checksum = 0
    begun = time.perf_counter()
    for number in range(messages):
        checksum += echo.ask(number)
        count += 1
    print(time.perf_counter() - begun, count, checksum)
    echo.stop()


if __name__ == "__main__":
    main(int(sys.argv[1]))
