"""The server's work between its rooms: pairs → store → encoder → index, and taste → picture.

Everything here is asyncio around four ports (``ports.py``); what carries the calls (Ray, or a test)
is not known here.
"""
