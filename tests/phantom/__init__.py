"""The phantom GPU: executes compiled GPU kernels on machines that have none, and finds their faults. See README.md."""
