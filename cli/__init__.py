"""The command line: ``famulus -A module worker``, or ``python module.py worker`` through `App.main`.

`main` is the console script. Each command is a module; `program` puts them together and turns errors into
lines.
"""

from .program import Program, main, make_program

__all__ = ["Program", "main", "make_program"]
