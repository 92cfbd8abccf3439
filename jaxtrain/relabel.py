"""`python -m jaxtrain.relabel ...` is the command `relabel`; see `commands/relabel.py`."""

import sys

from jaxtrain.main import main

if __name__ == "__main__":
    sys.exit(main([sys.argv[0], "relabel", *sys.argv[1:]]))
