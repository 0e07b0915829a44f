"""headstart: from a folder of pictures to the best classifier a pre-trained network can give, with the evidence."""

__version__ = "0.1.0"
