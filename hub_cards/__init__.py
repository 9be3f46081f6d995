"""Model and data set cards rendered from result files, and their upload to the Hub."""
