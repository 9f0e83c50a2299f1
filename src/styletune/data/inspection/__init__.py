"""What is measured in images: quality, copies, motifs, palette; kept by content."""
