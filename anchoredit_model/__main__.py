"""Entry point of `python -m anchoredit_model`; see cli.py."""

import sys

from .cli import main

sys.exit(main())
