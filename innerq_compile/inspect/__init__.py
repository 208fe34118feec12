"""What was done to a program, for people: reports, explanations, dumps, reproducers."""
