"""`python -m jaxtrain.solve ...` is the command `solve`; see `commands/solve.py`."""

import sys

from jaxtrain.main import main

if __name__ == "__main__":
    sys.exit(main([sys.argv[0], "solve", *sys.argv[1:]]))
