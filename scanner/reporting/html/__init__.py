"""report.html: one page for people, which loads nothing and works without a network."""
