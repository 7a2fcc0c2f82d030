"""The one door through which stages and the command line open tokenizers: it passes in the networks that tokenizers does not hold."""

from pathlib import Path

from worldloom.stages.vit_networks import vit_networks
from worldloom.tokenizers.load import load_tokenizer
from worldloom.tokenizers.networks.elsewhere import Networks
from worldloom.tokenizers.tokenizer import Tokenizer

NETWORKS: Networks = {"vit": vit_networks}


def open_tokenizer(folder: Path) -> Tokenizer:
    """Any tokenizer from its folder; FileNotFoundError or ValueError where there is none."""
    return load_tokenizer(folder, NETWORKS)
