"""`python -m jaxtrain.report ...` is the command `report`; see `commands/report.py`."""

import sys

from jaxtrain.main import main

if __name__ == "__main__":
    sys.exit(main([sys.argv[0], "report", *sys.argv[1:]]))
