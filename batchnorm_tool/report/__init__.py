"""Pages and charts about a finished run: inline SVG, one HTML document, and text for terminals.

Nothing here reads a file or prints: every function takes data and returns text. `summary` serves
the terminal; `run_page` the HTML page; `svg`, `page`, `scale`, `markup` and `bins` lie below them
and know nothing of runs.
"""
