"""The paper's tables in the small: subsets, trainings and paintings as commands, run side by side, cached by content.

arms       what is trained on what; the tables and their comparisons
settings   AblationsConfig: every budget, once
tasks      config -> commands with folders named by a hash of all that decides them
runner     estimate, trial, run as processes, go on after a kill
direct_set a record set of paintings in one go, from one of paintings by steps
figures    rows of paintings -> tables with paired intervals
report     JSON, markdown, plot
"""
