"""Whether a refresh may be published: limits on its input and output, and an audit of its rows.

Nothing here reads a file: every function judges numbers, arrays and tables that it is given, and
returns findings, those within their limits included.
"""
