"""`python -m gratis VERB ...`, the same as the command `gratis VERB ...`."""

import sys

from gratis.cli import main

sys.exit(main())
