"""Moving messages: frames, streams with credits, registry. It does not know what the bytes mean.

``streams``    many answers over one connection: ``StreamServer``, ``StreamConnection``
``registry``   who is there: ``open_registry``, ``Registry``, ``Lease``, ``Watch``
``frames``     what goes over the wire; ``codec`` turns it into bytes and back

Other rooms import ``streams`` and ``registry``; the rest is how they are made.
"""
