"""Sites: a layer of the base as data. Which module is one, of which kind, and what map it computes."""
