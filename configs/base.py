"""Every key and its default, gathered from the dataclasses beside the code they govern (see their
remarks there).
"""

from dataclasses import asdict
from typing import Any

from ml_collections import ConfigDict

from jaxtrain.config import Config


def get_config() -> Any:  # a ConfigDict, whose attributes no checker knows
    """Return the defaults."""
    return ConfigDict(asdict(Config()), convert_dict=True)
