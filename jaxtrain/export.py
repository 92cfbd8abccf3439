"""`python -m jaxtrain.export ...` is the command `export`; see `commands/export.py`."""

import sys

from jaxtrain.main import main

if __name__ == "__main__":
    sys.exit(main([sys.argv[0], "export", *sys.argv[1:]]))
