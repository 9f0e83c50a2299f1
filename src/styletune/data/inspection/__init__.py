"""What is measured in images: quality, copies, motifs, palette; stored by content."""
