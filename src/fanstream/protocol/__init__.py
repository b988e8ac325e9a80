"""The protocol: frames and the time in, events and bytes out. No I/O, no clock, no event loop."""
