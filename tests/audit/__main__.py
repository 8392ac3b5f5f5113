"""`python -m tests.audit [NAME ...]`, from the repository's top.

The exit status is 0 if nothing is wrong, 1 for faults, and 2 for a name that no replication has.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.audit.audit import audit


def main(names: list[str]) -> int:
    """Print each fault, each file that was derived again, and what could not be checked."""
    known = sorted(path.parent.name for path in Path("replications").glob("*/claims.toml"))
    if unknown := [name for name in names if name not in known]:
        print(f"expected replications with a claims.toml ({', '.join(known)}), found {_printable(unknown[0])}")
        return 2
    files: list[str] = []
    missing: list[str] = []
    faults = 0
    with tempfile.TemporaryDirectory(prefix="audit-") as folder:
        for fault in audit(Path(), Path(folder), names, files.append, missing.append):
            faults += 1
            print(f"FAULT        {_printable(str(fault))}")
    files = [file for file in files if Path(file).exists()]  # a new replication has none yet
    for file in files:
        print(f"checked      {file}")
    for reason in missing:
        print(f"NOT CHECKED  {_printable(reason)}")
    print(f"{len(files)} files derived again from their records, {faults} faults")
    return 1 if faults else 0


def _printable(text: str) -> str:
    """Places are made of keys of files, which may hold what does something to a terminal."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
