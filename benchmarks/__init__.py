"""Side-by-side measurements. Never imported by the product; see README.md here."""
