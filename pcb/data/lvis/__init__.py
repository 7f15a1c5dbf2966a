"""LVIS annotation files: reading, checking, indexing, and the training data set made of them."""
