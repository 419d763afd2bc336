"""The vocabulary: what processes and rooms say to each other, one file for each hop.

``generate``   frontend -> worker: a request for tokens
``items``      worker -> frontend: tokens, offers, ends, load
``handoff``    prefill worker -> decode worker, carried by the frontend unread
``card``       worker -> registry: who I am and what I can do
``kv_events``  worker -> router: which blocks are cached here
``metrics``    engine -> worker -> router, planner: what a step did

Everything here is data. It imports nothing of the house but ``ids``.
"""
