"""Where step times and model shapes are read from: profile files, kernel tables, ``config.json``.

Does the file I/O that ``decide.perf`` must not do, and hands it plain objects. It knows no engines and no
processes.
"""
