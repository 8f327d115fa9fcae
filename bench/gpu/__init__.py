"""Every GPU kernel against MAX's built-in ops: counted on the phantom GPU, timed on a real one. `python -m bench.gpu`."""
