"""`python -m jaxtrain.evaluate ...` is the command `evaluate`; see `commands/evaluate.py`."""

import sys

from jaxtrain.main import main

if __name__ == "__main__":
    sys.exit(main([sys.argv[0], "evaluate", *sys.argv[1:]]))
