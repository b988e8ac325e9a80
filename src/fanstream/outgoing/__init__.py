"""The streams that this engine opens: ``stream`` is one of them; the rest drives it, keeps it, or is a part of it.

``producing`` makes its objects of a producer and ``handle`` lets others send on it, ``running`` ends it however that
ended, and ``durable`` writes into ``ledger`` how far it is. It knows nothing of incoming streams.
"""
