"""`python -m ovseg` is the command `ovseg`."""

import sys

from ovseg.cli import main

if __name__ == "__main__":
    sys.exit(main())
