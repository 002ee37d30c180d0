"""The report page: data of a working directory, collected and drawn as one HTML file."""
