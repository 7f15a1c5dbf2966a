"""One experiment trained: configs, the resumable loop, checkpoints, starting weights."""
