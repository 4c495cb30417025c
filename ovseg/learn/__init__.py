"""Train networks with weak labels: masks, clicks, titles, and what other networks say."""
