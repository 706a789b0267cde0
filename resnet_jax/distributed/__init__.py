"""Devices and processes: the mesh, jobs of several processes, processor cores."""
