"""The main job from end to end on one machine: ``make demo``.

Runs the public commands one after another, each in its own process as a user would, with its output in a log file and
its progress on the terminal, and ends with a report. What has been done is remembered, so a second call continues.
"""
