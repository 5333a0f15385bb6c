"""What keeps faults of torch 2.13.0 out of the examples' tests.

AVX2 for oneDNN: in its AVX-512 code backward of a stand-in's network ended the process by a signal.

Time for torch's own threads before the interpreter ends: Gloo's may then still let go of the last
step's tensors, which aborts the process (pytorch issue 190489), and destroy_process_group does not
end them where DDP was used: seen in one of 120 runs beside other work. What is registered here
first runs last, behind the loader's end."""

import atexit
import os
import sys
import time

os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")  # read when torch is imported
atexit.register(lambda: "torch.distributed" in sys.modules and time.sleep(0.5))
