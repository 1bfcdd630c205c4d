"""`python -m nano_ds` is `nano-ds`."""

import sys

from nano_ds.cli import main

sys.exit(main())
