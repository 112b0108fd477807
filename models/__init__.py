"""Records, converters, codecs: what values look like, and how they become bytes and come back."""
