"""The machine: GPU leases, ranks of a training, instructions of a CPU, provenance of results."""
