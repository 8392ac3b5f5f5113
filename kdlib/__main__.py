"""`python -m kdlib` is `kd`."""

import sys

from kdlib.cli import main

if __name__ == "__main__":
    sys.exit(main())
