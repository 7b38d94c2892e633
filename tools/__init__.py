"""Programs of the house: generation, checks, what tests are built with. Never imported by the product."""
