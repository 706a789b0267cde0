"""Devices and processes: the mesh, multi-process jobs, CPU cores."""
