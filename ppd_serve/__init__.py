"""The personalised text-to-image server: pairs in, pictures to one person's taste out."""
