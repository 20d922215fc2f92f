"""While a module trains: scales watched, and chosen anew."""
