"""``tokenmill simulate``: a declared factory on a virtual clock. Knows no processes and no sockets."""
