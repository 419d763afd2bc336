"""From other systems' deployment files to a factory, and what of them could not be carried over.

Plain functions without I/O: text in, a factory and a list of losses out. Whatever of a file nobody has read
at the end is a loss, so that nothing is dropped in silence.
"""
