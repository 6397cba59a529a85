"""Parser of the commands that have the options of Lightning's Trainer."""

from pytorch_lightning.cli import LightningArgumentParser

from mobile_former.training.cli.parser import Parser


class LightningParser(Parser, LightningArgumentParser):
    """Parser with the methods of Lightning's command line, such as ``add_lightning_class_args``."""
