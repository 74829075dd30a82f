"""Where preference pairs come from: the studio world, Pick-a-Pic, a server's live choices."""
