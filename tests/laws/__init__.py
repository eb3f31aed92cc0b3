"""What the tests hold the laws against, written without the code that they judge."""
