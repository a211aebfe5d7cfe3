"""A seeded simulation of Slipway under faults.

The real handlers and use cases run on the fakes of `tests.fakes`, on a simulated clock. Every call to a port
may fail, hang or be the last one of its function; messages, events and ticks are lost, doubled or late. Then
everything heals, and what must hold after any fault is checked. A seed always tells the same story, and one
that breaks a promise is shrunk to the few faults and requests that it needs.

`scheduler` has the clock and the functions that run side by side, `faults` decides what goes wrong, `ports`
puts those faults between the use cases and the fakes, `world` is what surrounds Slipway (queues, events,
executor), `story` makes up what clients do, `promises` says what must hold, `run` runs one seed, `shrink`
makes a failing one small, and `recall` puts known faults back to see whether they are found.
"""
