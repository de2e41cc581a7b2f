"""LiteRT itself: its operators, its file format and its interpreter."""
