"""``python -m segformer`` is the command line."""

import sys

from segformer.cli import main

sys.exit(main())
