"""What a router is made from: its options, what it opens, and the files that it reads again."""
