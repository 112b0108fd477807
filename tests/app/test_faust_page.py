"""docs/faust.md: the program moved from Faust runs as it stands."""

import re
from pathlib import Path

import pytest

from famulus.testing.worker_process import WorkerProcess

PAGE = (Path(__file__).parents[2] / "docs" / "faust.md").read_text(encoding="utf-8")


@pytest.mark.real_time
async def test_the_program_of_the_page_runs(tmp_path: Path) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (told,) = re.findall(r"print\(.*\) +# (.*)", program)
    (tmp_path / "shop.py").write_text(program)
    worker = WorkerProcess([str(tmp_path / "shop.py"), "worker", "--no-banner"], log=tmp_path / "log")
    try:
        await worker.wait_for(rf"(?m)^{told}$")
        worker.stop()
        assert await worker.wait() == 0
    finally:
        worker.kill()
