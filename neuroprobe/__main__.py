"""``python -m neuroprobe``: the command line."""

import sys

from neuroprobe.cli import main

sys.exit(main())
