"""Launching on real parts of clusters: SLURM, xpk and SkyPilot."""
