"""A seeded simulation of Slipway under faults.

Simulated: the handlers of `app.py` and the use cases run as they are, side by side, on the fakes of
`tests.fakes` and a simulated clock. Functions change places at every call to a port. A call may fail, take
long, lose its answer, see an old state, or be the last one of its function (`Fault`); messages, events and
ticks are lost, doubled or late; functions end at their time limit; executors have few slots, forget what they
were asked, lose builds and have faults; clients repeat what was not answered. Then everything heals, days
pass, and what must hold after any fault is checked (`promises`).

Not simulated: the adapters and AWS itself (the contract tests hold the fakes to what adapters do), HTTP
(requests call the use cases), faults within a page of a log, and changes between two calls to a port by the
same function, because a fake's method is one step.

A seed always tells the same story. To see one again, shrunk to the few faults and requests that it needs:
`make simulate SEEDS=1 FIRST=<seed>`. Each fault has a key ("reconcile 3 call 7") and is drawn by that key
alone, so leaving out one fault or request does not change the others.

`scheduler` has the clock and the functions that run side by side, `faults` decides what goes wrong, `ports`
puts those faults between the use cases and the fakes, `world` is what surrounds Slipway (queues, events,
executor), `story` makes up what clients do, `promises` says what must hold, `run` runs one seed, `shrink`
makes a failing one small, and `recall` puts known faults back to see whether they are found.
"""
