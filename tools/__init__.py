"""Developer tools: generators, checks, builds for tests. Never imported by the product."""
