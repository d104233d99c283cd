"""What is checked before the first step, so that a job that cannot end well does not begin."""
