"""The demo, which writes down each row that an agent begins with: what is written stays when it is killed."""

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

spec = importlib.util.spec_from_file_location("flights", Path(__file__).parents[2] / "examples" / "flights.py")
assert spec is not None
assert spec.loader is not None
demo = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(demo)

journal = os.open(os.environ["FLIGHTS_JOURNAL"], os.O_CREAT | os.O_WRONLY | os.O_APPEND)
is_counted = demo.is_counted


def is_written_down(flight: Any) -> Any:
    os.write(journal, f"{sys._getframe(1).f_code.co_name} {flight.row}\n".encode())
    return is_counted(flight)


demo.is_counted = is_written_down  # type: ignore[attr-defined]  # a name of the demo's
demo.app.main()
