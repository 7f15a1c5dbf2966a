"""emoji-LVIS, a generated data set in LVIS format, and the detector of its smallest scales."""
