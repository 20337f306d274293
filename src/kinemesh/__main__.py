"""``python -m kinemesh``: the ``kinemesh`` command, for launchers that start a module."""

import sys

from kinemesh.cli import main

if __name__ == "__main__":
    sys.exit(main())
