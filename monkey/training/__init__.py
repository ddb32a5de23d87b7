"""Fine-tuning: flags, recipes (what trains), samples, the trainer and the record of a run.

`finetune_multitask.py` is the program over it. DeepSpeed, PEFT and matplotlib are imported only by a run
that needs them.
"""
