"""Networks, their weights, preprocessing and classifiers."""
