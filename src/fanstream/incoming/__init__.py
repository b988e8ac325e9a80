"""The streams that others open here: ``serving`` takes them, and ``stream`` is the life of one and of its consumer.

``registry`` says whose consumer that is. It knows nothing of outgoing streams.
"""
