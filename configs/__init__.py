"""The configs: `--config quickstart` names quickstart.py here.

They are installed as jaxtrain.configs.
"""
