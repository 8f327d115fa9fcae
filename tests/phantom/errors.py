"""What goes wrong on the phantom GPU."""


class PhantomError(RuntimeError):
    """A fault of a kernel or of its launch, in one line: what, where, and at which instruction."""


class UnsupportedError(PhantomError):
    """Something the phantom GPU does not understand; no statement about the kernel."""
