"""Fine-tuning: flags, recipes (what trains), samples, the trainer and the record of a run.

`finetune_multitask.py` is the program over it. DeepSpeed, PEFT and matplotlib are imported only by a run
that needs them.
"""

import logging

# accelerate imports bitsandbytes where it is installed, which then recommends a faster CPU kernel at every start.
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(
    lambda record: "kernels-community" not in record.getMessage()
)
