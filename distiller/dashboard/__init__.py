"""The pages an operator sees."""
