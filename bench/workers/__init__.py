"""Processes under Ray that jobs run in: slots on the CPUs and GPUs of one machine or of a cluster."""
