"""Where images come from: folders, archives, tables, the Hub; with captions and rights."""
