"""The machine: leases on GPUs, the ranks of a training, provenance of results."""
