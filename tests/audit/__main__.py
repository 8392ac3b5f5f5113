"""`python -m tests.audit [NAME ...]`, from the repository's top: exit status 0 if nothing is wrong, else 1."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.audit.audit import audit


def main(names: list[str]) -> int:
    """Print each fault, each file that was derived again, and what could not be checked."""
    files: list[str] = []
    missing: list[str] = []
    faults = 0
    with tempfile.TemporaryDirectory(prefix="audit-") as folder:
        for fault in audit(Path(), Path(folder), names, files.append, missing.append):
            faults += 1
            print(f"FAULT        {fault}")
    files = [file for file in files if Path(file).exists()]  # a new replication has none yet
    for file in files:
        print(f"checked      {file}")
    for reason in missing:
        print(f"NOT CHECKED  {reason}")
    print(f"{len(files)} files derived again from their records, {faults} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
