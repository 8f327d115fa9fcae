"""Launches that overlap: a kernel begins while the one before it ends (NVIDIA, sm_90 up; elsewhere nothing of this happens).

A decoding step is some forty launches of 2 or 3 us, each of which needs what the one before it wrote. Between two of them a GPU would
drain and fill again: the blocks of the next one are dealt out, read their arguments and wait for weights that have been there
all the time. So a launch is marked (`overlapping`), and its kernel says two things:

    start_next()           the next launch's blocks may be dealt out as soon as all of mine are
    wait_for_previous()    from here on I read what earlier launches wrote, and write what they read

        n-1   ----------------------|
        n        deal, load W | wait |------------------|
        n+1                          deal, load W | wait |------

What lies in front of the wait must read only what no launch of the graph writes, weights above all, and write nothing. Every
kernel that is launched so must wait, in every block that does not end at once: when it has ended, whatever came before it has, too.

On the phantom GPU one launch follows the other. On an H200 the results are the same bits; in a CUDA
graph of twelve alike, a linear layer 384 -> 384 with one row takes 1.4 us in place of 2.1, 1536 -> 384 1.7 in place of 2.5, a layer
norm 1.1 in place of 1.5.

NVIDIA, "CUDA C++ Programming Guide", 6.2.8.5 (programmatic dependent launch); "PTX ISA", 9.7.13.13 (griddepcontrol).
"""

from max.gpu.host.launch_attribute import LaunchAttribute
from max.gpu.primitives.grid_controls import (
    PDLLevel,
    launch_dependent_grids,
    pdl_launch_attributes,
    wait_on_dependent_grids,
)


def overlapping() -> List[LaunchAttribute]:
    """Marks a launch whose kernel calls `wait_for_previous`."""
    return pdl_launch_attributes(PDLLevel.ON)


@always_inline
def start_next():
    """Lets the next launch begin once every block of this one has called this."""
    launch_dependent_grids()


@always_inline
def wait_for_previous():
    """Waits until the launches before this one have ended and what they wrote can be read."""
    wait_on_dependent_grids()
