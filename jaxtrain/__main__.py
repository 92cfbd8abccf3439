"""`python -m jaxtrain ...` is `jaxtrain ...`; see `main.py`."""

import sys

from jaxtrain.main import main

if __name__ == "__main__":
    sys.exit(main())
