"""OwnBench: which ways of proving ownership of a neural network hold up."""

__version__ = "0.1.0"
