"""``python -m neuroprobe``: the command line."""

import sys

from neuroprobe._cli import main

sys.exit(main())
