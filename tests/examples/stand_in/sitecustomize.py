"""Time for torch's own threads before the interpreter ends.

Gloo's may then still let go of the last step's tensors, which aborts the process (pytorch issue
190489), and destroy_process_group does not end them where DDP was used (torch 2.13.0): seen in one
of 120 runs beside other work. What is registered here first runs last, behind the loader's end."""

import atexit
import sys
import time

atexit.register(lambda: "torch.distributed" in sys.modules and time.sleep(0.5))
