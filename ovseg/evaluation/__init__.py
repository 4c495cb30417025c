"""How well a segmenter does: metrics, labelled datasets and the loop over one. No torch."""
