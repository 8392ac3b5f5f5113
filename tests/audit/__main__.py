"""`python -m kdlib.audit [NAME ...]`, from the repository's top: exit status 0 where nothing is wrong, else 1."""

from __future__ import annotations

import sys
from pathlib import Path

from kdlib.audit import audit
from kdlib.errors import KDError


def main(names: list[str]) -> int:
    """Print each file when it has been looked at, and each fault."""
    files: list[str] = []
    faults = 0
    try:
        for fault in audit(Path(), names, files.append):
            faults += 1
            print(f"FAULT    {fault}")
    except (KDError, OSError) as error:
        print(f"FAULT    {error}")
        faults += 1
    for file in files:
        print(f"checked  {file}")
    print(f"{len(files)} files derived again from their records, {faults} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
