"""`pcb doctor`: checks of the machine, the environment and the data, each with its fix.

`probe` asks torch and mmcv in a process of its own, `checks` judges the facts, `report` runs the
checks and prints them. Set-up and GPU jobs run those that concern them. Only `probe` imports torch.
"""
