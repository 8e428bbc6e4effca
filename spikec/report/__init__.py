"""Where time, energy and area of a program go, and what would change them."""
