"""`python -m lxt_compose` is the same as the command `lxt-compose`."""

import sys

from .cli.command_line import main

if __name__ == "__main__":
    sys.exit(main())
