"""``python -m neuroprobe``: the command line."""

import sys

from neuroprobe._cli.main import main

sys.exit(main())
