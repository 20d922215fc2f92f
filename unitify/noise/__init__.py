"""What casts leave of a signal, predicted through the rules, and measured."""
