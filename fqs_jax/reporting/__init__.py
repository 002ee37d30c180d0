"""The report page: data collected from a working directory, drawn and written as one file."""
