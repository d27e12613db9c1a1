"""Results -> tables in a terminal, JSON, and HTML pages that stand alone."""
