"""Public data sets as they lie on disk: how each is recognized, and what its paths and tables say."""
