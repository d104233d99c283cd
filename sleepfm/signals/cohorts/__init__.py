"""What is known of a source of recordings: cohorts as rules, montage, units, and whose a recording is."""
