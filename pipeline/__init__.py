"""Stages of the pipeline: files in, files out, no algorithms.

dvc.yaml wires them; each runs as `python -m pipeline.NAME` from the root of the
repository, reads params.yaml, and leaves its outputs under build/ and reports/.
"""
