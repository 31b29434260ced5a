"""The options of a training, in the groups that ``segformer train --help`` shows.

Each group is a dataclass. `segformer.training.config` joins them into the configuration of a task.
Nothing here imports torch, so that the help appears at once.
"""
