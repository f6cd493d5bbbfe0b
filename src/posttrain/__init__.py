"""posttrain: turn a pretrained language model into the assistant you need, with whichever lever pays."""

__version__ = "0.1.0"
