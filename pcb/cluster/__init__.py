"""Machines: GPU leases, process groups, provenance."""
