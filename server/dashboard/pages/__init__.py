"""The HTML pages, one a module: each has its router and its templates of the same name."""
