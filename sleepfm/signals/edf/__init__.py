"""EDF and BDF files: header, time stamps, annotations and blocks of samples."""
