"""Stand-ins for NVIDIA's driver libraries: what MAX's runtime talks to, with the phantom GPU behind it."""
