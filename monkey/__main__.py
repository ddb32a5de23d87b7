"""`python -m monkey PROGRAM …`, see monkey/command.py."""

import sys

from monkey.command import main

if __name__ == "__main__":
    sys.exit(main())
