"""`python -m jaxtrain.view ...` is the command `view`; see `commands/view.py`."""

import sys

from jaxtrain.main import main

if __name__ == "__main__":
    sys.exit(main([sys.argv[0], "view", *sys.argv[1:]]))
