"""Model cards, one Markdown file for each model."""
