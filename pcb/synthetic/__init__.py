"""emoji-LVIS: the drawn data set in LVIS format, and the small frozen-backbone detector that it is used with."""
