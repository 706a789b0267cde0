"""The tasks a network can be trained for, each with its metrics and evaluation."""
