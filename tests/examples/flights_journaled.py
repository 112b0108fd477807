"""The demo, which writes down each row that an agent begins with: what is written stays when it is killed."""

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

PROGRAM = Path(__file__).parents[2] / "examples" / "flights.py"


def main() -> None:
    spec = importlib.util.spec_from_file_location("flights", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    demo: Any = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = demo
    spec.loader.exec_module(demo)
    journal = os.open(os.environ["FLIGHTS_JOURNAL"], os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    is_counted = demo.is_counted

    def is_written_down(flight: Any) -> Any:
        os.write(journal, f"{sys._getframe(1).f_code.co_name} {flight.replay} {flight.row}\n".encode())
        return is_counted(flight)

    demo.is_counted = is_written_down
    demo.app.main()


if __name__ == "__main__":
    main()
