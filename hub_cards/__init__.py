"""Model and data set cards from the result files of a run, and upload to the Hub."""
